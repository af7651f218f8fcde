// Folds ASCII letters only; other bytes stay.
#include "text/fold.h"
Text Fold(const Text& text) {
  Text folded = text;
  for (char& letter : folded)
    if (letter >= 'A' && letter <= 'Z') letter = static_cast<char>(letter + ('a' - 'A'));
  return folded;
}
