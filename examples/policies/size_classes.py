"""Four size classes to each power of two, as jemalloc and TCMalloc have them, in place of kmalloc's one (and 96 and 192): at most a fifth of a slot is wasted."""


def size_class(size, gfp, site):
    if size <= 64:
        return 8 * -(-size // 8)
    step = 1 << (size - 1).bit_length() - 3
    return step * -(-size // step)
