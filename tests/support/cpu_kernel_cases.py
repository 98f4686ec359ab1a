"""The calls that `cpu_kernel_checks` makes of the compiled CPU kernels."""

from __future__ import annotations

from collections.abc import Iterator

from tests.support.strategies import ConvCase, Epilogue, UpfirdnCase

FULL = Epilogue(True, True, "each", "lrelu", 0.2, 2**0.5, 2.5)
SHARED = Epilogue(True, False, "shared", "lrelu", 0.1, -0.7, None)
ACS4 = ((3, 3, 3), (1, 3, 3), (3, 1, 3), (3, 3, 1))


def wide_cases() -> Iterator[ConvCase]:
    """Channel counts around every register width, lines around every tile width, every stride and padding."""
    channels = [
        (1, 3),
        (3, 1),
        (7, 9),
        (8, 8),
        (9, 7),
        (15, 17),
        (16, 16),
        (17, 15),
        (24, 8),
        (8, 24),
        (33, 40),
        (48, 33),
    ]
    for seed, (cin, cout) in enumerate(channels):
        yield ConvCase(cin=cin, cout=cout, size=(3, 2, 9), in_scale=seed % 2 == 0, epilogue=FULL, seed=seed)
    for seed, width in enumerate((1, 2, 8, 15, 17, 63, 64, 65, 130)):
        layout = ("channels_last", "sliced", "permuted", "contiguous")[seed % 4]
        for stride in ((1, 1, 1), (1, 2, 2), (2, 1, 2)):
            yield ConvCase(
                cin=8,
                cout=7,
                size=(2, 3, width),
                stride=stride,
                epilogue=SHARED,
                layout=layout,
                in_scale=True,
                seed=seed,
            )
        yield ConvCase(
            cin=5,
            cout=9,
            size=(2, 2, width),
            stride=(1, 2, 2),
            transposed=True,
            epilogue=FULL,
            layout=layout,
            seed=seed,
        )
    yield ConvCase(cin=20, cout=8, size=(9, 11, 7), padding="valid", epilogue=FULL, seed=30)
    yield ConvCase(cin=20, cout=18, size=(9, 6, 7), padding="valid", stride=(2, 1, 2), epilogue=SHARED, seed=31)
    yield ConvCase(cin=4, cout=20, size=(3, 4, 5), padding="valid", stride=(2, 2, 1), transposed=True, seed=32)
    yield ConvCase(((7, 1, 5), (1, 7, 7)), 6, 8, size=(8, 3, 9), epilogue=FULL, seed=33)
    yield ConvCase(((3, 3, 3),), 24, 40, size=(4, 5, 6), epilogue=FULL, seed=34)
    yield ConvCase(((3, 3, 3),) * 3, 10, 6, size=(4, 5, 6), epilogue=FULL, seed=35)
    yield ConvCase(ACS4, 8, 12, size=(3, 5, 17), epilogue=FULL, in_scale=True, seed=36)
    yield ConvCase(ACS4, 9, 20, size=(3, 4, 6), shuffle=False, epilogue=FULL, seed=37)
    yield ConvCase(((3, 3, 3), None), 17, 17, size=(3, 4, 6), epilogue=FULL, in_scale=True, seed=38)
    yield ConvCase(cin=16, cout=16, size=(11, 13, 10), batch=3, epilogue=FULL, seed=39)


def small_cases() -> Iterator[ConvCase]:
    """Enough to notice a planted fault, and quick."""
    yield ConvCase(cin=8, cout=8, size=(3, 4, 17), epilogue=FULL, in_scale=True, seed=50)
    yield ConvCase(
        cin=17, cout=24, size=(4, 3, 70), stride=(1, 2, 2), in_scale=True, epilogue=SHARED, layout="sliced", seed=51
    )
    yield ConvCase(cin=20, cout=9, size=(3, 2, 7), stride=(1, 2, 2), transposed=True, epilogue=FULL, seed=52)
    yield ConvCase(ACS4, 3, 9, size=(4, 3, 5), epilogue=FULL, seed=53)
    yield ConvCase(cin=5, cout=6, size=(5, 4, 6), padding="valid", shuffle=False, epilogue=SHARED, seed=54)
    yield ConvCase(((3, 3, 3), None), 6, 6, size=(3, 4, 6), epilogue=FULL, in_scale=True, seed=55)
    yield ConvCase(cin=3, cout=4, size=(2, 2, 70), epilogue=FULL, seed=56)
    yield ConvCase(cin=16, cout=8, size=(3, 5, 9), stride=(1, 2, 2), shuffle=False, epilogue=SHARED, seed=57)
    yield ConvCase(((3, 3, 3), None), 8, 8, size=(3, 4, 6), epilogue=FULL, seed=58)
    # Read where they lie: one block of channels, blocks and a rest, two tiles along W, strides, far branches.
    yield ConvCase(cin=8, cout=8, size=(3, 4, 70), batch=2, layout="channels_last", epilogue=SHARED, seed=59)
    yield ConvCase(
        cin=12, cout=5, size=(4, 3, 9), batch=2, layout="channels_last", in_scale=True, epilogue=FULL, seed=60
    )
    yield ConvCase(cin=20, cout=8, size=(3, 2, 1), layout="channels_last", stride=(2, 1, 1), epilogue=SHARED, seed=61)
    yield ConvCase(cin=8, cout=6, size=(3, 5, 9), layout="channels_last", stride=(1, 2, 2), epilogue=SHARED, seed=62)
    yield ConvCase(((1, 1, 9), (3, 1, 3)), 6, 8, size=(4, 3, 11), padding="valid", layout="channels_last", seed=63)
    yield ConvCase(cin=40, cout=9, size=(2, 3, 5), layout="channels_last", epilogue=SHARED, seed=64)
    # Scaled weights of each sample instead of scaled inputs; dot products.
    yield ConvCase(cin=8, cout=8, size=(6, 7, 9), layout="channels_last", in_scale=True, epilogue=FULL, seed=79)
    yield ConvCase(((1, 1, 1),), 19, 1, size=(3, 4, 5), layout="channels_last", in_scale=True, epilogue=FULL, seed=80)
    # One channel: a line's positions fill the vectors, as many as there are whole ones.
    yield ConvCase(((1, 1, 1),), 5, 1, size=(2, 3, 37), layout="channels_last", in_scale=True, epilogue=FULL, seed=81)
    yield ConvCase(((3, 3, 3),), 2, 1, size=(2, 3, 39), stride=(1, 1, 2), epilogue=SHARED, seed=82)
    yield ConvCase(((3, 3, 3),), 3, 1, size=(2, 3, 18), transposed=True, stride=(1, 1, 2), epilogue=FULL, seed=83)
    # Two lines in a vector: odd numbers of them, one alone, a stride between them, too far apart; and one line of 16.
    yield ConvCase(cin=8, cout=8, size=(3, 5, 19), layout="channels_last", epilogue=SHARED, seed=65)
    yield ConvCase(cin=12, cout=7, size=(4, 1, 9), layout="channels_last", epilogue=FULL, seed=66)
    yield ConvCase(cin=9, cout=8, size=(2, 9, 5), layout="channels_last", stride=(1, 2, 1), epilogue=SHARED, seed=67)
    yield ConvCase(cin=40, cout=8, size=(2, 7, 5), layout="channels_last", epilogue=SHARED, seed=68)
    yield ConvCase(((3, 5, 3), (1, 3, 3)), 8, 8, size=(3, 6, 7), padding="valid", layout="channels_last", seed=69)
    yield ConvCase(cin=16, cout=16, size=(3, 4, 21), layout="channels_last", epilogue=SHARED, seed=70)
    yield ConvCase(cin=20, cout=15, size=(3, 4, 9), in_scale=True, epilogue=FULL, seed=71)
    # Blocks of channels of every kind in one branch: 16 and 8 where they lie, 32 and 8 and 32 and 16 packed.
    yield ConvCase(cin=12, cout=24, size=(3, 5, 9), layout="channels_last", epilogue=SHARED, seed=72)
    yield ConvCase(cin=24, cout=40, size=(2, 5, 6), layout="channels_last", epilogue=SHARED, seed=73)
    yield ConvCase(cin=9, cout=48, size=(2, 3, 7), in_scale=True, epilogue=FULL, seed=74)


def filter_cases() -> Iterator[UpfirdnCase]:
    """Channels around the blocks of 8 and 16, several tiles of height and depth, borders cropped and left out."""
    yield UpfirdnCase((4, 4, 4), 3, 2, (3, 5, 4), up=(2, 2, 2), padding=(2, 1, 2, 1, 2, 1), seed=70)
    yield UpfirdnCase((4, 4, 4), 24, 2, (4, 6, 5), down=(2, 2, 2), padding=1, layout="channels_last", seed=71)
    yield UpfirdnCase((None, 4, 4), 17, 1, (2, 5, 6), padding=(0, 0, 2, 2, 2, 1), layout="sliced", seed=72)
    yield UpfirdnCase((3, 1, 5), 16, 2, (4, 5, 3), (3, 1, 2), (2, 1, 3), (-2, 3, 1, 0, 4, -1), layout="channels_last",
                      seed=73)  # fmt: skip
    yield UpfirdnCase(
        (4, None, 7), 8, 1, (9, 2, 3), (1, 3, 1), (1, 2, 1), (3, 2, 0, 1, 9, 12), layout="permuted", seed=74
    )
    yield UpfirdnCase(
        (4, 4, 4), 72, 1, (5, 70, 66), (1, 2, 2), padding=(1, 2, 2, 1, 2, 1), layout="channels_last", seed=75
    )
    yield UpfirdnCase((9, 9, 9), 5, 1, (13, 6, 5), padding=4, seed=76)
    yield UpfirdnCase((1, None, 2), 9, 1, (5, 2, 3), (3, 1, 1), padding=(4, 2, 0, 0, 1, 0), depth_border="replicate")
    # Along D the outer slices again; their gradients are the same with what lies beyond folded.
    for up, down, size, padding in (
        ((2, 2, 2), (1, 1, 1), (4, 5, 3), (2, 1, 2, 1, 2, 1)),
        ((1, 1, 1), (2, 2, 2), (9, 5, 6), (1, 1, 1, 1, 1, 1)),
        ((1, 1, 1), (1, 1, 1), (1, 4, 5), (2, 2, 2, 2, 2, 2)),
        ((3, 1, 2), (2, 1, 1), (2, 3, 4), (7, 9, 1, 2, 0, 3)),
    ):
        yield UpfirdnCase((4, 4, 4), 24, 2, size, up, down, padding, "replicate", layout="channels_last", seed=78)
    yield UpfirdnCase((None, None, None), 20, 1, (4, 3, 5), (1, 2, 1), (2, 1, 3), (1, 0, -1, 2, 0, 3), seed=77)
