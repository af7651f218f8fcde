// Counts folded words.
#include "text/count.h"
std::map<Text, int> Count(const Text& text) {
  std::map<Text, int> counts;
  for (const Text& word : Split(Fold(text))) ++counts[word];
  return counts;
}
