// SPDX-License-Identifier: Apache-2.0
// Stands where libvirt looks for its emulator. Announces a guest's QEMU to the recorder of the lab, hands the same
// connection to QEMU as a second QMP monitor and becomes QEMU: same pid, same descriptors, same locks. libvirt's probes
// of the emulator's abilities have no -uuid and are passed through. A file on the host says how much address space a
// guest's QEMU may have, when it is to have too little.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static const char REAL[] = "/var/lib/libvirt/usr/bin/qemu-system-x86_64";
static const char RECORDER[] = "/var/lib/libvirt/recorder/socket";
static const char MEMORY[] = "/run/lab-memory";

static void die(const char *what) {
    fprintf(stderr, "lab recorder: %s: %s\n", what, strerror(errno));
    exit(1);
}

static const char *guest_uuid(char **argv) {
    for (; argv[0] && argv[1]; argv++)
        if (!strcmp(argv[0], "-uuid")) return argv[1];
    return NULL;
}

static int announce(const char *uuid) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char host[65] = "", byte = 0;
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strcpy(address.sun_path, RECORDER);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) die(RECORDER);
    gethostname(host, sizeof host - 1);
    if (dprintf(fd, "start %s %s\n", host, uuid) < 0) die("write");
    // Byte by byte: what follows the line is for QEMU.
    while (byte != '\n')
        if (read(fd, &byte, 1) != 1) die("no answer");
    return fd;
}

static void limit_memory(void) {
    FILE *file = fopen(MEMORY, "r");
    unsigned long bytes;
    if (!file) return;
    if (fscanf(file, "%lu", &bytes) != 1) die(MEMORY);
    fclose(file);
    if (setrlimit(RLIMIT_AS, &(struct rlimit){bytes, bytes})) die("setrlimit");
}

int main(int argc, char **argv) {
    const char *uuid = guest_uuid(argv);
    char chardev[64], **args = calloc(argc + 5, sizeof *args);
    if (!args) die("calloc");
    memcpy(args, argv, argc * sizeof *args);
    if (uuid) {
        limit_memory();
        snprintf(chardev, sizeof chardev, "socket,id=labrecorder,fd=%d", announce(uuid));
        args[argc] = "-chardev";
        args[argc + 1] = chardev;
        args[argc + 2] = "-mon";
        args[argc + 3] = "chardev=labrecorder,mode=control";
    }
    execv(REAL, args);
    die(REAL);
}
