# Every applet of busybox whose output is the same on every machine, once or twice: $BUSYBOX, in a directory below $WORK.
# Two hundred processes, one after the other: what one of them leaves behind wrongly, the next ones meet.
export TZ=UTC LC_ALL=C
b() { "$BUSYBOX" "$@"; }
say() { echo "== $*"; }
cd "$WORK" && b mkdir -p applets && cd applets || exit 1
umask 022
b seq 1 40 > numbers
printf 'pear\napple\nfig\napple\nbanana\n' > fruit
printf 'one\ttwo\tthree\n' > tabs

say text
b cat fruit; b tac fruit; b rev fruit; b nl fruit; b head -n 2 fruit; b tail -n 2 fruit; b tail -c 5 fruit
b sort fruit; b sort -u fruit; b sort -rn numbers | b head -n 3; b sort fruit | b uniq -c; b shuf -n 0 fruit
b cut -f 2 tabs; b cut -c 2-4 fruit; b expand tabs; b unexpand -a tabs; b fold -w 7 numbers | b head -n 3
b paste numbers fruit | b head -n 6; b tr a-z A-Z < fruit; b tr -d '\n' < fruit; echo
b grep -n a fruit; b grep -c . fruit; b egrep 'p{2}' fruit; b fgrep fig fruit; b sed -n 's/a/A/gp' fruit; b sed '2,3d' fruit
b awk '{ n[$1]++ } END { for (k in n) print k, n[k] }' fruit | b sort; b awk 'BEGIN { printf "%.3f %s\n", 22 / 7, substr("hello", 2, 3) }'
b wc fruit numbers; b strings -n 4 fruit; b printf '%5.2f|%-6s|%x\n' 3.14159 ab 255; b echo -e 'a\tb'; b yes n | b head -n 2
b dos2unix < fruit | b md5sum; b unix2dos < fruit | b md5sum; printf '2p\nq\n' | b ed fruit

say sums
for sum in md5sum sha1sum sha256sum sha512sum sha3sum crc32; do b $sum numbers; done
b md5sum numbers > sums && b md5sum -c sums; b base64 fruit; b base64 fruit | b base64 -d; b uuencode fruit name | b uudecode -o -
b od -c fruit | b head -n 3; b hexdump -C fruit | b head -n 2; b xxd fruit | b head -n 2; b cmp fruit numbers; echo $?

say archives
for z in gzip bzip2; do b $z -c numbers > packed; b $z -dc packed | b cmp - numbers && echo $z; done
b gzip -9 < numbers | b zcat | b tail -n 1; b bzip2 < fruit | b bzcat
b tar cf a.tar fruit numbers; b tar tf a.tar; b mkdir -p out; b tar xf a.tar -C out; b ls out
b ls fruit numbers | b cpio -o -H newc 2> /dev/null | b cpio -t 2> /dev/null; b ar -t none 2> /dev/null; echo $?

say files
b cp fruit copy; b mv copy moved; b ln moved hard; b ln -s moved soft; b ls -1; b readlink soft; b stat -c '%h %s %a %F' moved soft
b chmod 640 moved; b stat -c %a moved; b touch -d '2001-02-03 04:05:06' moved; b stat -c '%y' moved; b date -r moved +%F
b test -s moved && echo there; [ -L soft ] && echo link; b truncate -s 3 moved; b cat moved; echo; b rm hard soft moved; b mkdir -p x/y/z; b touch x/y/f
b find x | b sort; b find x -type d -name z; b rmdir x/y/z; b rm -r x; b du -a nothing 2> /dev/null; echo $?; b head -n 15 numbers > part1; b tail -n 25 numbers > part2; b wc -l part1 part2
b cp -p fruit inst; b dd if=numbers bs=5 skip=2 count=2 2> /dev/null; echo; b tee t1 t2 < fruit > /dev/null; b cmp t1 t2 && echo same
b realpath ./out/../fruit | b sed "s|$WORK||"; b basename /a/b.c .c; b dirname /a/b.c; b mktemp -u XXXXXX | b wc -c; b shred -u -n 1 inst; b ls inst 2> /dev/null; echo $?

say programs
b env -i A=1 B=2 "$BUSYBOX" env; b expr 6 \* 7; b expr abc : 'a\(.\)'; b factor 5040 97; echo '2^64; scale=5; 22/7' | b bc; echo '2 3 ^ p' | b dc
b seq -w 8 11; b seq 1 2 6; b cal 2 2024; b date -d @86400 '+%F %T'; b true; echo $?; b false; echo $?; b getopt -o ab: -- -a -b x y
b timeout 60 "$BUSYBOX" echo in time; b timeout -s KILL 1 "$BUSYBOX" sleep 100 2> /dev/null; echo $?; b nohup "$BUSYBOX" echo hup 2> /dev/null; b setsid "$BUSYBOX" echo session
b echo 1 2 3 | b xargs -n 1 echo; b find . -name 'part*' | b sort | b xargs "$BUSYBOX" cat | b md5sum; b usleep 1000; b sleep 0.01; echo $?
b time "$BUSYBOX" true 2> /dev/null; b which nothing; echo $?; b pwd | b sed "s|$WORK||"; b test 3 -gt 2; echo $?
b diff fruit numbers | b head -n 3; b cp fruit new; echo kiwi >> new; b diff -u fruit new | b tail -n 3 > patch; b cmp -s fruit new; echo $?; b mkfifo fifo; (b cat fruit > fifo &); b cat fifo | b wc -l
b sh -c 'trap "echo trapped" USR1; kill -USR1 $$; echo after'; b sh -c 'ulimit -n 50; ulimit -n'; b kill -l 9; b pidof nothing; echo $?
b cat /proc/self/cmdline | b tr '\0' ' ' | b cut -d ' ' -f 2-; b ash -c 'echo $((16#ff)) ${x:-default}'; b head -c 5 /dev/zero | b od -An -tx1; b ipcalc -n 10.1.2.3/8
cd .. && b rm -r applets; echo done
