# A hundred lines of ordinary shell, the same for busybox ash and bash. BUSYBOX names the tools' binary, WORK a
# directory to write in.
# Its output must not depend on the machine: no times, no process ids, no paths.
set -u
t() { "$BUSYBOX" "$@"; }
say() { printf '%s\n' "$*"; }

say "1 pipes"
t seq 1 2000 | t sort -rn | t head -n 3
t seq 1 500 | t grep 7 | t wc -l
t seq 1 100 | t awk '{ s += $1 } END { print s }'
say hello | { read -r word; say "read: $word"; }
t seq 10 | t sed -n '3,5p' | t tr '\n' ' '; echo
false | true; say "status of a pipe: $?"
true | false; say "and of the other: $?"

say "2 subshells"
x=outer
(x=inner; say "in: $x")
say "out: $x"
(exit 42); say "exit code $?"
y=$(say a; (say b; (say c)))
say "nested: $y"
( (exit 3) || say "inner failed with $?" )

say "3 here-documents"
t cat <<END
x is $x, sum is $((6 * 7)), command: $(say substituted)
END
t cat <<'END'
no $expansion here
END
t wc -l <<END
$(t seq 1 300)
END

say "4 background jobs and wait"
for i in 1 2 3 4; do (t sleep 0.0$i; exit $i) & pids="${pids:-} $!"; done
for pid in $pids; do wait "$pid"; say "job ended with $?"; done
(t seq 1 1000 | t md5sum) & first=$!
(t seq 1 1000 | t sha1sum) > $WORK/sha & second=$!
wait $first; say "first $?"
wait $second; say "second $?"
t cat $WORK/sha
wait; say "nothing left: $?"

say "5 traps"
trap 'say "got USR1"' USR1
kill -USR1 $$
say "after the signal"
trap - USR1
(trap 'say "subshell leaves"' EXIT; say "in the subshell")
(
    "$BUSYBOX" sleep 30 > /dev/null 2>&1 & sleeper=$!
    trap 'kill $sleeper; say "terminated"; exit 9' TERM
    say ready > "$WORK/ready"
    wait $sleeper
) & child=$!
until [ -s "$WORK/ready" ]; do t sleep 0.01; done
kill -TERM $child; wait $child; say "ended: $?"
("$BUSYBOX" sh -c 'kill -KILL $$') 2> /dev/null; say "killed: $?"
"$BUSYBOX" sleep 30 > /dev/null 2>&1 & victim=$!
kill $victim; wait $victim 2>/dev/null; say "terminated job: $?"

say "6 files"
mkdir_status=0; t mkdir -p $WORK/dir/sub || mkdir_status=$?
say "mkdir $mkdir_status"
for i in 3 1 2; do say "line $i" >> $WORK/dir/list; done
t sort $WORK/dir/list
say overwritten > $WORK/dir/list; t cat $WORK/dir/list
t cp $WORK/dir/list $WORK/dir/sub/copy && t mv $WORK/dir/sub/copy $WORK/dir/moved && t ls $WORK/dir
[ -f $WORK/dir/moved ] && say "is a file"; [ -d $WORK/dir/sub ] && say "is a directory"
while read -r a b; do say "$b-$a"; done < $WORK/dir/list
t dd if=/dev/zero bs=1024 count=64 2>/dev/null | t md5sum
t rm -r $WORK/dir $WORK/sha; [ -e $WORK/dir ] || say "gone"
say "to stderr" 2>&1 >/dev/null; say "to both" 1>&2 2>/dev/null
{ say out; say err >&2; } 2>&1 | t sort
exec 5> $WORK/five; say "by descriptor" >&5; exec 5>&-; t cat $WORK/five; t rm $WORK/five

say "7 language"
f() { [ "$1" -le 1 ] && { say 1; return; }; say $(($1 * $(f $(($1 - 1))))); }
say "10! = $(f 10)"
case abc.txt in *.md) say no ;; *.txt) say "case matches" ;; esac
s=one:two:three; say "${s%%:*} ${s#*:} ${#s} ${unset:-default}"
IFS=:; set -- $s; say "$# words, last $3"; unset IFS
i=0; while :; do i=$((i + 1)); [ $((i % 2)) -eq 0 ] && continue; [ $i -gt 7 ] && break; printf '%d ' $i; done; echo
eval 'say "eval: $((1 << 20))"'
printf '%05d|%-6s|%x\n' 42 ab 255

say "8 many processes"
n=0; for i in $(t seq 1 30); do t true && n=$((n + 1)); done; say "$n ran"
t seq 1 5 | while read -r n; do (say $((n * n))) ; done | t sort -n | t tr '\n' ' '; echo
t yes | t head -n 1000 | t wc -l
t seq 1 20000 | t md5sum
say done
