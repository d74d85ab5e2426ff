# A section of docs/debugging.md is true: its commands, in their order, print the lines that stand below them.
import re


def section(title):
    """Each command of the section with the lines that it prints there, and the program's name."""
    book = os.path.join(os.path.dirname(os.environ["TASKVISOR_COMMANDS"]), "../../docs/debugging.md")
    text = open(book).read().split("\n## %s\n" % title, 1)[1].split("\n## ", 1)[0]
    inside = "\n".join(re.findall(r"```\n(.*?)```", text, re.S))
    pieces = [piece.splitlines() for piece in ("\n" + inside).split("\n(gdb) ")[1:]]
    return [(piece[0], piece[1:]) for piece in pieces], re.search(r"-- \./(\w+)", inside)[1]


def bare(line):
    """What a run doesn't change: without addresses, numbers of lines, CPUs and times, and how wide columns are."""
    line = re.sub(r"for [0-9.]+ (us|ms|s)\b", "for TIME", line)
    line = re.sub(r"\S*(resources/programs/)", r"\1", line)
    line = re.sub(r"0x[0-9a-f]{5,}|(?<=main)\+[0-9]+", "ADDRESS", line)
    line = re.sub(r"(vCPU|Thread|\.c:) ?[0-9]+", r"\1 N", line)
    line = re.sub(r"^\*?\s*[0-9]+\s", "", line)
    line = re.sub(r"\s[0-9]+\s+[0-9.]+s\b", " CPU TIME", line)
    return " ".join(line.split())


def settled(text):
    """Runs until so many threads say this of themselves."""
    what, count = text.rsplit("*", 1)
    for _ in range(300):
        interrupted_continue()
        if len(tasks(what)) >= int(count):
            return
    check(False, "%s threads: %s" % (count, what))


def walk():
    """the section's commands"""
    told, program = section(os.environ["TASKVISOR_SECTION"])
    check(len(told) > 3, "the section has commands")
    if os.environ.get("TASKVISOR_UNTIL"):
        settled(os.environ["TASKVISOR_UNTIL"])
    for command, lines in told:
        if command.startswith("target remote"):
            continue  # common.py has done that
        found = [bare(line) for line in run(command).splitlines()]
        # Where it has stopped, and why, gdb tells the terminal only.
        place = run("frame").splitlines()
        found += [bare(line) for line in place + [re.sub(r"^#0 +", "", place[0])]]
        for line in lines:
            signalled = re.search(r"received signal (\w+)", line)
            if signalled:
                equal(signals[-1], signalled[1], command)
                continue
            # The tests' program has a name of its own.
            wanted = re.sub(r"\b%s( |\")" % program, r"target\1", line)
            check(line.startswith("[Switching") or bare(wanted) in found, "%s: %r" % (command, line))


def leave():
    """the guest ends with its debugger's leave"""
    run("kill" if os.environ.get("TASKVISOR_UNTIL") else "continue")


main(walk, leave)
