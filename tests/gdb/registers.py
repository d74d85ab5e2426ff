# Registers: read, written, and those of a thread that is on no CPU.
def own():
    """all of them are read; what is written is there"""
    run("break marker")
    run("continue")
    # For GNU/Linux gdb lists the bases only when it is asked for them.
    text = run("info registers") + run("info registers fs_base gs_base")
    for register in ("rax", "rip", "eflags", "fs_base", "gs_base"):
        check(register in text, register)
    for register in ("rax", "rbx", "r15"):
        old = value("$" + register)
        run("set var $%s = 0x1122334455667788" % register)
        run("maint flush register-cache")
        equal(value("$" + register), 0x1122334455667788, "%s as written" % register)
        run("set var $%s = %d" % (register, old))
    equal(value("$cr0") & 0x80000001, 0x80000001, "cr0: paging is on")
    check(value("$cr4") & 0x20 != 0 and value("$efer") & 0x500 == 0x500, "cr4 and efer: long mode")
    equal(value("$cs") & 3, 3, "cs: the program")


def vectors():
    """SSE state of a thread that is on a vCPU"""
    text = run("p $xmm0.uint128")
    check("unavailable" not in text and "void" not in text, "xmm0 is known")
    run("set var $mxcsr = $mxcsr")
    check("0x1f80" in run("p/x (int)$mxcsr"), "mxcsr is the start's")


def waiting():
    """a thread that waits: its frames are right though it uses floating point"""
    who = tasks("blocked")
    check(len(who) >= 1, "somebody waits")
    who[0].switch()
    equal(value("$mode"), 0, "it is in the kernel")
    check("<unavailable>" in run("p $rax"), "what isn't saved isn't there, and no zero")
    check(value("$rip") >> 47 != 0, "rip is where it goes on")
    before = value("$rbx")
    run("set var $rbx = 0x55")
    run("maint flush register-cache")
    equal(value("$rbx"), 0x55, "a saved one is written")
    run("set var $rbx = %d" % before)
    try:
        run("set var $rax = 1")
        check(False, "one that isn't saved is refused")
    except gdb.error as error:
        check(True, "one that isn't saved is refused: %s" % error)


def end():
    """the program's floating point is what it was"""
    run("thread 1")
    to_the_end()


main(own, vectors, waiting, end)
