# Memory through the selected task's page table: read, written, refused.
import os
import tempfile


def begin():
    """to where the program has filled its memory"""
    run("break marker")
    run("continue")
    run("up")


def values():
    """variables, structures, strings, arrays"""
    equal([value("pattern[%d]" % n) for n in (0, 5, 15)], [1, 8, 987], "an array")
    check('x = 3, y = 4, name = 0x' in run("print place") and '"here"' in run("print place"), "a structure")
    check('"as it was"' in run("print message"), "a string")
    check("block" in run("info symbol block"), "symbols")


def written():
    """what is written is what the program finds"""
    text = b"changed by the debugger\0"
    gdb.selected_inferior().write_memory(value("(long)&message"), text)
    run('set var message[0] = \'C\'')
    run("set var place.x = -5")
    equal(value("place.x"), -5, "read back")
    run("set var place.x = 3")
    equal(value("place.x"), 3, "and once more")


def large():
    """a MiB is read, searched and written back as it is"""
    with tempfile.TemporaryDirectory() as there:
        at = os.path.join(there, "block")
        run("dump binary memory %s &block[0] &block[1048576]" % at)
        with open(at, "rb") as dumped:
            check(dumped.read() == b"\x5a" * (1 << 20), "every byte")
        run("set var block[777777] = 0x7f")
        check("<block+777777>" in run("find &block[0], &block[1048575], (char)0x7f"), "find")
        run("restore %s binary &block[0]" % at)
        equal(value("block[777777]"), 0x5a, "restored")


def binary():
    """every byte's value comes and goes unchanged, also those that the framing uses"""
    everything = bytes(range(256)) * 3
    inferior = gdb.selected_inferior()
    at = value("(long)&block[4000]")
    inferior.write_memory(at, everything)
    check(bytes(inferior.read_memory(at, len(everything))) == everything, "768 bytes over a page's end")
    inferior.write_memory(at, b"\x5a" * len(everything))


def unmapped():
    """what isn't mapped is an error; the session goes on"""
    refused("x/x 0x10", "Cannot access memory")
    refused("set var *(int *)0x10 = 1", "Cannot access memory")
    refused("x/x 0x800000000000", "Cannot access memory")
    refused("x/x 0xffff7fffffffffff", "Cannot access memory")
    equal(value("pattern[2]"), 2, "and on")


def text_is_left_alone():
    """a page that the program can't write isn't written: it may be shared"""
    before = bytes(gdb.selected_inferior().read_memory(value("(long)sum_to"), 8))
    refused("set var *(char *)sum_to = 0x90", "Cannot access memory")
    check(bytes(gdb.selected_inferior().read_memory(value("(long)sum_to"), 8)) == before, "as it was")


def sections():
    """the program's sections are the file's"""
    for section in (".text", ".rodata"):
        check(": matched" in run("compare-sections " + section), section)


def physical():
    """guest-physical memory with a monitor switch"""
    text = run("monitor translate 0x%x" % value("(long)&pattern"))
    at = int(text.split("guest-physical ")[1].split(",")[0], 16)
    run("monitor physical on")
    run("maint flush dcache")
    equal(value("*(int *)%d" % (at + 4 * 6)), 13, "the same by its physical address")
    run("monitor physical off")
    run("maint flush dcache")
    equal(value("pattern[6]"), 13, "and by its own again")


def kernel_half():
    """the kernel's memory from a task in its program"""
    at = [line.split(" at ")[1].split(",")[0] for line in run("monitor cpus").splitlines() if "idle" in line]
    check(len(at) == 1, "one CPU is idle")
    check(len(bytes(gdb.selected_inferior().read_memory(int(at[0], 16), 16))) == 16, "the kernel's text is read")


def called():
    """a function of the program is called from gdb"""
    equal(value("fib(10)"), 55, "its result")
    equal(value("sum_to(100)"), 5050, "and another's")


main(begin, values, written, large, binary, unmapped, text_is_left_alone, sections, physical, kernel_half, called, to_the_end)
