# System calls stop on their way in and out, by number, by name, or all of them.
def one(call):
    run("catch syscall %s" % call)
    run("continue")
    equal((value("$rax"), value("$orig_rax"), value("$rdi")), (1, 1, 1), "the call stops on its way in")
    equal((value("$task_id"), value("$mode")), (1, 3), "with the program's registers")
    run("continue")
    equal(value("$orig_rax"), 1, "and on its way out")
    check(value("$rax") > 5, "with its result")
    equal(ended, [], "the program is still there")
    run("delete")


def on_their_way():
    run("break main")
    run("continue")
    run("delete")


def by_name():
    one("write")


def all_of_them():
    run("catch syscall")
    run("continue")
    check(value("$orig_rax") >= 0, "whatever comes")
    run("stepi")
    equal(value("$task_id"), 1, "a step from a call stays with its thread")
    run("delete")


main(on_their_way, all_of_them, by_name, to_the_end)
