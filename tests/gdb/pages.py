# A breakpoint on a page that is not there yet, and memory as the program has it.
def pending():
    """on a page that isn't mapped yet it is accepted, and met when the page comes"""
    run("break marker")
    run("continue")
    run("delete")
    check("not mapped" in run("monitor translate 0x%x" % value("(long)late")), "the page isn't there")
    run("break late")
    run("continue")
    equal((name(), value("n")), ("late", 4), "the first instruction on that page")
    check("is guest-physical" in run("monitor translate 0x%x" % value("(long)late")), "the page is there")


def hardware():
    """hbreak in a program; going on from it works"""
    run("delete")
    run("hbreak late")
    run("continue")
    equal((name(), value("n")), ("late", 5), "the second call")
    run("stepi")
    check(value("$pc") != value("(long)late"), "a step from it")
    run("finish")
    equal(name(), "main", "and on")


main(pending, hardware, to_the_end)
