// Letters fold, other bytes do not.
#include "text/fold.h"
int main() { return Fold("Ab-Z9") == "ab-z9" ? 0 : 1; }
