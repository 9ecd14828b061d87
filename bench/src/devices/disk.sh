# Puts a load on a disk: $1 is the disk's name, $2 the seconds to measure; the others are lines of a job file of
# fio. Prints the sectors that were read and written when the measurement begins and when it ends, and fio's
# report.
disk=$1 seconds=$2
shift 2
report=/run/hypernest-bench.json complaints=/run/hypernest-bench.txt
sectors() {
    read -r a b reads c d e writes rest <"/sys/block/$disk/stat"
    echo $((reads + writes))
}
rm -f $report
start=$(sectors)
{
    echo '[load]'
    echo "filename=/dev/$disk"
    for line; do echo "$line"; done
} | fio --output-format=json --output=$report - >$complaints 2>&1 &
# The 512 sectors are more than a look for partitions reads.
while kill -0 $! 2>/dev/null && [ $(($(sectors) - start)) -lt 512 ]; do sleep 0.1; done
sleep 1
echo "@from $(sectors)"
sleep "$seconds"
to=$(sectors)
kill -0 $! 2>/dev/null && running=yes || running=no
echo "@to $to $running"
wait $!
status=$?
echo "@status $status"
if [ $status = 0 ]; then gzip -9c $report | base64; else cat $complaints; fi
echo @done
