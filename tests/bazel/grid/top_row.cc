// Prints what the topmost row of the grid answers.
#include <cstdio>
#include "grid/cell_5_0.h"
#include "grid/cell_5_1.h"
#include "grid/cell_5_2.h"
#include "grid/cell_5_3.h"
#include "grid/cell_5_4.h"
#include "grid/cell_5_5.h"
#include "grid/cell_5_6.h"
#include "grid/cell_5_7.h"
int main() {
  unsigned (*const cells[])(unsigned) = {cell_5_0, cell_5_1, cell_5_2, cell_5_3,
                                         cell_5_4, cell_5_5, cell_5_6, cell_5_7};
  for (auto* cell : cells) std::printf("%u\n", cell(7));
}
