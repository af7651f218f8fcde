// Reads a text, prints its report.
#include <iostream>
#include <iterator>

#include "text/report.h"
int main() {
  std::cout << Report({std::istreambuf_iterator<char>(std::cin), {}});
}
