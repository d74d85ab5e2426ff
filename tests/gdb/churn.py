# Threads that come and go.
import os

ROUNDS = int(os.environ["TASKVISOR_ROUNDS"])


def listed():
    """the list is true at every stop"""
    run("break hit")
    most = 0
    for _ in range(6):
        run("continue")
        there = threads()
        most = max(most, len([t for t in there if "user task" in (t.details or "")]))
        equal(len({t.ptid for t in there}), len(there), "no number twice")
        check(gdb.selected_thread().ptid in [t.ptid for t in there], "who has stopped is among them")
    check(most > 1, "more than one of the program's: %d" % most)
    run("delete")


def rounds():
    """when all have been joined only the first is left"""
    run("break marker")
    for _ in range(ROUNDS):
        run("continue")
        mine = [t for t in threads() if "user task" in (t.details or "") and "dead" not in (t.details or "")]
        check(mine and mine[0].ptid[1] == 1, "the first one: %r" % [(t.ptid[1], t.details) for t in mine])


main(listed, rounds, to_the_end)
