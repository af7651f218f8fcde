// A word is a run of letters; everything else separates.
#include "text/split.h"

#include <cctype>
Texts Split(const Text& text) {
  Texts words;
  Text word;
  for (unsigned char letter : text + " ") {
    if (std::isalpha(letter)) {
      word += static_cast<char>(letter);
    } else if (!word.empty()) {
      words.push_back(word);
      word.clear();
    }
  }
  return words;
}
