# The set-up of a stock Debian for tests: a login of root on the first serial port, an address by DHCP, and no
# jobs at fixed times. $1 is the directory of its files.
set -eu
cd "$1"
echo debian >etc/hostname
echo '127.0.0.1 localhost debian' >etc/hosts
echo 'LABEL=root / ext4 errors=remount-ro 0 1' >etc/fstab
# The same in every image: without one systemd treats the first boot as an installation.
echo 7f6c4ad0c2b14f0e9d1d3c5a6b7e8f90 >etc/machine-id
chroot . passwd --quiet --delete root
mkdir -p etc/systemd/system/serial-getty@ttyS0.service.d
cat >etc/systemd/system/serial-getty@ttyS0.service.d/login.conf <<'END'
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --keep-baud 115200 - $TERM
END
cat >etc/systemd/network/80-dhcp.network <<'END'
[Match]
Type=ether

[Network]
DHCP=yes
END
chroot . systemctl --quiet enable systemd-networkd.service
chroot . systemctl --quiet disable systemd-networkd-wait-online.service apt-daily.timer \
    apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer
rm -rf usr/share/doc usr/share/man usr/share/locale usr/share/info
rm -rf var/log/*.log var/log/apt var/cache/* var/lib/apt/lists/*
# The archive is this machine's, and a guest does not reach it.
rm -f etc/apt/sources.list etc/apt/sources.list.d/*
