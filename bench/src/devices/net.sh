# Puts a load on the network: $1 is the load, $2 the host's address, $3 its port. Ends when the host closes the
# connection. This is bash, which can connect.
exec 2>/run/hypernest-bench-net.txt
exec 3<>"/dev/tcp/$2/$3" || exit
echo '@net connected'
case $1 in
tcp-out) cat /dev/zero >&3 ;;
tcp-in) cat <&3 >/dev/null ;;
tcp-echo) cat <&3 >&3 ;;
esac
