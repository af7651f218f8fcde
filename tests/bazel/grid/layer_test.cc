// Compares one cell with what Starlark calculated for it (grid.bzl).
#include <cstdio>
#include HEADER
int main() {
  const unsigned answer = CELL(7);
  if (answer == EXPECTED) return 0;
  std::printf("answered %u, expected %u\n", answer, static_cast<unsigned>(EXPECTED));
  return 1;
}
