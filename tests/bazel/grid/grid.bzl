# Writes a grid of small C++ libraries: every cell calls two cells of the layer below, so that a
# change spreads upwards like a cone. Sources are made by genrules from two templates.

_MODULUS = 65521

def _below(column, width):
    return [column, (column + 1) % width]

def expected(layers, width, start):
    """What each cell of the topmost layer answers for `start`; the tests are told by Starlark."""
    row = [start % _MODULUS for _ in range(width)]
    for layer in range(layers):
        row = [
            (3 * row[_below(column, width)[0]] + row[_below(column, width)[1]] +
             _salt(layer, column)) % _MODULUS
            for column in range(width)
        ]
    return row

def _salt(layer, column):
    return 1000 * (layer + 1) + 17 * column

def _cell(layer, column, width):
    name = "cell_%d_%d" % (layer, column)
    left, right = ["cell_%d_%d" % (layer - 1, below) for below in _below(column, width)]
    if layer == 0:
        left, right = "ground", "ground"
    for suffix in ["h", "cc"]:
        native.genrule(
            name = "%s_%s" % (name, suffix),
            srcs = ["cell.%s.tpl" % suffix],
            outs = ["%s.%s" % (name, suffix)],
            cmd = "sed -e s/@NAME@/%s/g -e s/@LEFT@/%s/g -e s/@RIGHT@/%s/g" % (name, left, right) +
                  " -e s/@SALT@/%d/g $< > $@" % _salt(layer, column),
        )
    native.cc_library(
        name = name,
        srcs = [name + ".cc"],
        hdrs = [name + ".h"],
        deps = [":" + left] if left == right else [":" + left, ":" + right],
    )

def grid(layers, width):
    """layers x width libraries, and for each layer a test of its last column.

    Args:
      layers: how many rows of cells stand upon `:ground`.
      width: how many cells a row has.
    """
    for layer in range(layers):
        for column in range(width):
            _cell(layer, column, width)
        native.cc_test(
            name = "layer_%d_test" % layer,
            size = "small",
            srcs = ["layer_test.cc"],
            copts = [
                "-DCELL=cell_%d_%d" % (layer, width - 1),
                "-DHEADER='\"grid/cell_%d_%d.h\"'" % (layer, width - 1),
                "-DEXPECTED=%d" % expected(layer + 1, width, 7)[width - 1],
            ],
            deps = [":cell_%d_%d" % (layer, width - 1)],
        )
