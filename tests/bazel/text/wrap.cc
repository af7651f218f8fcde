// Fills lines greedily; a word longer than a line stands alone.
#include "text/wrap.h"
Text Wrap(const Text& text, unsigned width) {
  Text lines, line;
  for (const Text& word : Split(text)) {
    if (!line.empty() && line.size() + 1 + word.size() > width) {
      lines += line + "\n";
      line.clear();
    }
    line += (line.empty() ? "" : " ") + word;
  }
  return line.empty() ? lines : lines + line + "\n";
}
