// Lists words that occur more than once.
#include "text/report.h"
Text Report(const Text& text) {
  Text report = Wrap(text, 40) + "--\n";
  for (const auto& [word, times] : Count(text))
    if (times > 1) report += word + " " + std::to_string(times) + "\n";
  return report;
}
