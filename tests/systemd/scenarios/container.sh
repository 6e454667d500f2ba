# The image's root, started by systemd as a container engine would: its user, its command, no
# capability, no C library, no io_uring. /image.env says what the Dockerfile wants.

. /image.env
images=/image/var/lib/diskchain/images
uri=nbd://127.0.0.1/vm1

step "the image holds one program, and folders for its user"
expect "programs" "$(find /image -type f -perm /111)" "/image$PROGRAM"
for folder in /image/run /image/var/lib/diskchain $images; do
    expect "owner of $folder" "$(stat -c %u:%g $folder)" "$IMAGE_USER"
done

qemu-img create -q -f vdi $images/vm1.vdi 64M
chown "$IMAGE_USER" $images/vm1.vdi
chmod 600 $images/vm1.vdi
# systemd asks for names, though the image has none.
echo "container:x:$IMAGE_USER::/:/usr/sbin/nologin" >>/etc/passwd
echo "container:x:${IMAGE_USER#*:}:" >>/etc/group
cat >/run/systemd/system/container.service <<EOF
[Service]
Type=exec
ExecStart=$PROGRAM $IMAGE_CMD
Environment=$IMAGE_ENV
RootDirectory=/image
MountAPIVFS=yes
User=${IMAGE_USER%:*}
Group=${IMAGE_USER#*:}
CapabilityBoundingSet=
NoNewPrivileges=yes
SystemCallFilter=~io_uring_setup
SystemCallErrorNumber=EPERM
KillSignal=$IMAGE_STOPSIGNAL
RemainAfterExit=yes
# What a container engine would not say.
UnsetEnvironment=JOURNAL_STREAM INVOCATION_ID
EOF
systemctl daemon-reload
# shellcheck disable=SC2086  # several assignments
healthy() {
    env -i $IMAGE_ENV nsenter --target "$1" --mount --root \
        --setuid "${IMAGE_USER%:*}" --setgid "${IMAGE_USER#*:}" "$PROGRAM" healthcheck
}

step "it serves without io_uring"
systemctl start container.service
within 20 nbdinfo --size "$uri"
pid=$(property MainPID container.service)
expect "its user" "$(stat -c %u:%g "/proc/$pid")" "$IMAGE_USER"
expect "capabilities" "$(sed -n 's/^CapEff:\t//p' "/proc/$pid/status")" 0000000000000000
io 'write -P 0x77 0 4M' 'flush' 'read -P 0x77 0 4M'
journalctl --no-pager --output cat --unit container.service | tee /out/container.log | sed 's/^/   /'
expect "mentions of io_uring" "$(grep -c io_uring /out/container.log)" 1

step "it says that it is healthy"
healthy "$pid"

step "it ends by the signal that the Dockerfile names"
systemctl kill container.service
ended() { [ "$(property SubState container.service)" != running ]; }
within 30 ended
expect "exit code" "$(property ExecMainStatus container.service)" 0
expect "result" "$(property Result container.service)" success
qemu-img check -q $images/vm1.vdi
