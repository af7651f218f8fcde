// Threads can be had, and the shards of a test are told their number.
#include <cstdlib>
#include <fstream>
#include <thread>
#include <vector>

#include "text/fold.h"
int main() {
  const char* total = std::getenv("TEST_TOTAL_SHARDS");
  const char* status = std::getenv("TEST_SHARD_STATUS_FILE");
  if (!total || Text(total) != "2" || !status) return 1;
  std::ofstream(status) << "shards understood\n";
  std::vector<Text> folded(4);
  std::vector<std::thread> threads;
  for (Text& text : folded) threads.emplace_back([&text] { text = Fold("THREAD"); });
  for (std::thread& thread : threads) thread.join();
  for (const Text& text : folded)
    if (text != "thread") return 1;
}
