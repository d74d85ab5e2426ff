# The program's own int3 is the program's.
def own():
    """it gets its SIGTRAPs, with a breakpoint of ours set"""
    run("break marker")
    run("continue")
    equal((name(), value("traps")), ("marker", 5), "all five were delivered")


main(own, to_the_end)
