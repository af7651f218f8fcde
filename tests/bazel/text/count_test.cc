// Words are counted whatever their case.
#include "text/count.h"
int main() { return Count("One one two").at("one") == 2 ? 0 : 1; }
