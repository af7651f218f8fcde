// A line ends before it is too long.
#include "text/wrap.h"
int main() { return Wrap("aa bb cc", 5) == "aa bb\ncc\n" ? 0 : 1; }
