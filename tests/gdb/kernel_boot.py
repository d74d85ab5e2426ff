# The kernel before and while it boots, by its own symbols.
import re


def first():
    """where a guest begins"""
    check("kernel" in run("info files"), "the kernel's file was read from the VMM")
    equal(value("$cr0") & (1 << 31), 0, "paging is off")
    run("set language c")


def entry():
    """breakpoints in the kernel before paging is on"""
    run("hbreak trap_from_user")
    run("break trap_from_kernel")
    run("continue")
    check(name() in ("trap_from_user", "trap_from_kernel"), "met: %s" % name())
    equal(value("$mode"), 0, "in the kernel")
    run("delete")


def hardware_slots():
    """four debug registers, the fifth is refused with the reason, and the session goes on"""
    at = value("(long)trap_from_user")
    for n in range(1, 5):
        run("hbreak *%d" % (at + n))
    run("hbreak *%d" % (at + 5))
    try:
        run("continue")
        check(False, "the fifth is refused")
    except gdb.error as error:
        check("aborted" in str(error) or "insert" in str(error), "the fifth is refused: %s" % error)
    run("delete")


def steps():
    """single steps in the kernel run no interrupt handler and stay on their vCPU"""
    run("break trap_from_user")
    run("continue")
    run("delete")
    cpu = value("$cpu")
    for _ in range(40):
        at = value("$pc")
        run("stepi")
        equal((value("$mode"), value("$cpu")), (0, cpu), "in the kernel, on the same CPU")
        check(value("$pc") != at, "it moves")
        frame_name = gdb.newest_frame().name() or ""
        check("timer" not in frame_name and "interrupt" not in frame_name, "no handler: %s" % frame_name)


def frames():
    """from the kernel's frames into the program's"""
    text = run("bt -frame-arguments none 30")
    check(re.search(r"trap_from_user|syscall|trap", text) is not None, "the trap is among them")


main(first, entry, hardware_slots, steps, frames, to_the_end)
