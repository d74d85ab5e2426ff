# Attached and detached, over and over, by gdb itself.
def again():
    """a guest is left and met again, five times; a breakpoint of an earlier session isn't there any more"""
    for n in range(5):
        run("break hit")
        run("continue")
        equal(name(), "hit", "round %d" % n)
        run("detach")
        attach()
        run("delete")
    check("No breakpoints" in run("info breakpoints"), "none is left")


def killed():
    """kill ends the guest"""
    run("kill")


main(again, killed)
