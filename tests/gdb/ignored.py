# gdb takes its breakpoint away to step one thread over it, and the others must not pass meanwhile.
def all_hits():
    """every one of 4 threads' 150 hits comes to gdb"""
    run("break main")
    run("continue")
    run("delete")
    run("break hit")
    run("ignore 2 100000")
    run("continue")
    check("already hit 600 times" in run("info breakpoints"), "none was lost")
    equal(ended, [7], "the program's end is told with its exit code")


main(all_hits)
