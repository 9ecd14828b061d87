# Puts loads on a disk and on the network and sends beats, until the host closes the connection: $1 is the disk's
# name, $2 the host's address, $3 and $4 its ports for the connection and for the beats; the others are lines of
# a job file of fio. This is bash, which can connect.
disk=$1 host=$2 connection=$3 beats=$4
shift 4
report=/run/hypernest-bench-moving.txt
exec 2>/run/hypernest-bench-net.txt
written() {
    read -r a b c d e f sectors rest <"/sys/block/$disk/stat"
    echo $sectors
}
start=$(written)
{
    echo '[load]'
    echo "filename=/dev/$disk"
    for line; do echo "$line"; done
} | fio - >$report 2>&1 &
fio=$!
exec 3<>"/dev/tcp/$host/$connection" 4>"/dev/udp/$host/$beats" || exit
# A pipe that never has data: a read from it is a sleep without a process.
exec 5<> <(:)
while :; do
    echo >&4
    read -r -t 0.005 -u 5
done &
beats=$!
while kill -0 $fio && [ $(($(written) - start)) -lt 512 ]; do sleep 0.1; done
echo '@net connected'
cat /dev/zero >&3
kill -0 $fio && running=yes || running=no
kill $fio
wait $fio
status=$?
kill $beats
errors=$(sed -n 's/.*err= *\([0-9]*\).*/\1/p' $report)
[ "$errors" = 0 ] || cat $report
echo "@fio $running ${errors:-none} $status"
