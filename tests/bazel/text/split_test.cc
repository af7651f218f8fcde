// Separators never become words.
#include "text/split.h"
int main() { return Split(" a, bc;") == Texts{"a", "bc"} && Split("").empty() ? 0 : 1; }
