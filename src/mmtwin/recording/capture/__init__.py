"""Where recordings come from: a kernel booted in QEMU (`vm`), its memory dumps (`snapshot`), its trace ring buffer (`ring_buffer`)."""
