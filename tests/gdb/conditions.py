# Conditions are evaluated by the VMM; temporary and ignored breakpoints are gdb's.
def body():
    run("break work if $task_id == 1 && counter == 3")
    run("continue")
    equal(value("counter"), 3, "the condition held")
    check("breakpoint already hit 1 time" in run("info breakpoints"), "gdb saw one hit only")
    run("delete")
    run("break work if $task_id == 99")
    run("break work")
    run("ignore 3 1")
    run("continue")
    equal(value("counter"), 5, "one was ignored, and the false one never stopped")
    run("delete")
    run("continue")


main(body)
