// Scores raw records with a verified bundle through the C API of ONNX Runtime.
//
//   score DIR [OUTPUT] < records.csv
//
// DIR is what `fedlatent-edge verify BUNDLE --key publisher.pub --extract DIR` wrote. Run that
// first, always: it checks the signature, every hash and the test vectors, and this program checks
// none of them. Each line of standard input is one record, raw values in the unit of the data source with
// commas between, no header. Each line of output is one score. OUTPUT names another output of the
// scorer, such as recentred_distance for a device that has put its own center into center.f32.
//
// Exit codes are those of fedlatent-edge: 2 wrong call, 3 wrong record, 8 wrong bundle.

#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

namespace {

constexpr int kUsage = 2, kData = 3, kBundle = 8;

struct Failure {
  int code;
  std::string sentence;
};

std::string read_file(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) {
    throw Failure{kBundle, "Expected a readable file at " + path +
                               ", got none; extract the bundle again."};
  }
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

// What a record is, and how raw values become model input (shared/data/schema.py).
struct Schema {
  std::vector<int64_t> shape;
  double scale = 1, lower = 0, upper = 0;
  std::string center;

  std::size_t size() const {
    return std::accumulate(shape.begin(), shape.end(), std::size_t{1},
                           [](std::size_t a, int64_t b) { return a * std::size_t(b); });
  }

  // Scale, centre and clip one raw record into `out`.
  void prepare(std::vector<double> record, std::vector<float>& out) const {
    for (double& value : record) value *= scale;
    const double shift = middle(record);
    for (std::size_t i = 0; i < record.size(); ++i) {
      const double value = record[i] - shift;
      if (!std::isfinite(value)) {
        throw Failure{kData, "Expected finite values, got NaN, infinity or an overflow in a record;"
                             " remove or fill it."};
      }
      out[i] = static_cast<float>(std::clamp(value, lower, upper));
    }
  }

 private:
  double middle(const std::vector<double>& values) const {
    if (center == "none") return 0;
    if (center == "mean") {
      return std::accumulate(values.begin(), values.end(), 0.0) / double(values.size());
    }
    std::vector<double> sorted(values);
    std::sort(sorted.begin(), sorted.end());
    const std::size_t half = sorted.size() / 2;
    return sorted.size() % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  }
};

// The text after "key": in canonical JSON, which has sorted keys and no spaces. A quote inside a
// JSON string is always escaped, so a name in quotes with a colon behind it is a key.
std::string value_after(const std::string& json, const std::string& key) {
  const std::string quoted = "\"" + key + "\":";
  const std::size_t at = json.find(quoted);
  if (at == std::string::npos) {
    throw Failure{kBundle, "Expected " + key + " in manifest.json, got none; this program reads "
                           "bundles of format 2."};
  }
  return json.substr(at + quoted.size());
}

Schema read_schema(const std::string& manifest) {
  const std::string all = value_after(manifest, "schema");
  const std::string json = all.substr(0, all.find('}') + 1);
  Schema schema;
  schema.scale = std::stod(value_after(json, "scale"));
  schema.lower = std::stod(value_after(json, "lower"));
  schema.upper = std::stod(value_after(json, "upper"));
  const std::string center = value_after(json, "center");
  schema.center = center.substr(1, center.find('"', 1) - 1);
  const std::string shape = value_after(json, "shape");
  for (std::size_t at = 0; shape[at] != ']';) {  // [1,8,8]
    std::size_t used = 0;
    schema.shape.push_back(std::stoll(shape.substr(at + 1), &used));
    at += 1 + used;
  }
  return schema;
}

std::vector<double> read_record(const std::string& line, std::size_t size, std::size_t number) {
  std::vector<double> values;
  const char* at = line.c_str();
  for (char* end = nullptr;; at = end + 1) {
    values.push_back(std::strtod(at, &end));
    if (end == at || (*end != ',' && *end != '\0' && *end != '\r')) {
      throw Failure{kData, "Expected numbers with commas between in record " +
                               std::to_string(number) + ", got something else; correct it."};
    }
    if (*end != ',') break;
  }
  if (values.size() != size) {
    throw Failure{kData, "Expected " + std::to_string(size) + " values, got " +
                             std::to_string(values.size()) + " in record " +
                             std::to_string(number) + "; choose other columns."};
  }
  return values;
}

// The scorer: x [1, *shape] and center [k] to one float.
class Scorer {
 public:
  Scorer(const std::string& folder, Schema schema, std::string output)
      : schema_(std::move(schema)), output_(std::move(output)), x_(schema_.size()) {
    api_ = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (api_ == nullptr) {
      throw Failure{kBundle, std::string("Expected an ONNX Runtime with C API ") +
                                 std::to_string(ORT_API_VERSION) + " or newer, got version " +
                                 OrtGetApiBase()->GetVersionString() + "; use a newer library."};
    }
    const std::string bytes = read_file(folder + "/center.f32");  // little-endian, as this machine
    center_.resize(bytes.size() / sizeof(float));
    std::copy_n(bytes.data(), center_.size() * sizeof(float),
                reinterpret_cast<char*>(center_.data()));
    open(std::ifstream(folder + "/scorer.ort") ? folder + "/scorer.ort" : folder + "/scorer.onnx");
    std::vector<int64_t> shape{1};
    shape.insert(shape.end(), schema_.shape.begin(), schema_.shape.end());
    inputs_[0] = tensor(x_, shape);
    inputs_[1] = tensor(center_, {int64_t(center_.size())});
  }

  ~Scorer() {
    for (OrtValue* value : inputs_) {
      if (value != nullptr) api_->ReleaseValue(value);
    }
    if (memory_ != nullptr) api_->ReleaseMemoryInfo(memory_);
    if (session_ != nullptr) api_->ReleaseSession(session_);
    if (options_ != nullptr) api_->ReleaseSessionOptions(options_);
    if (environment_ != nullptr) api_->ReleaseEnv(environment_);
  }
  Scorer(const Scorer&) = delete;
  Scorer& operator=(const Scorer&) = delete;

  float score(const std::vector<double>& raw) {
    schema_.prepare(raw, x_);
    const char* names[] = {"x", "center"};
    const char* outputs[] = {output_.c_str()};
    OrtValue* result = nullptr;
    check(api_->Run(session_, nullptr, names, inputs_, 2, outputs, 1, &result));
    void* data = nullptr;
    OrtStatus* status = api_->GetTensorMutableData(result, &data);
    const float value = status == nullptr ? *static_cast<float*>(data) : NAN;
    api_->ReleaseValue(result);
    check(status);
    if (!std::isfinite(value)) {
      throw Failure{kBundle, "Expected a finite score, got another; export the bundle again."};
    }
    return value;
  }

 private:
  void open(const std::string& path) {
    check(api_->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "score", &environment_));
    check(api_->CreateSessionOptions(&options_));
    check(api_->SetIntraOpNumThreads(options_, 1));
    check(api_->CreateSession(environment_, path.c_str(), options_, &session_));
    check(api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
  }

  OrtValue* tensor(std::vector<float>& values, const std::vector<int64_t>& shape) {
    OrtValue* made = nullptr;
    check(api_->CreateTensorWithDataAsOrtValue(memory_, values.data(),
                                               values.size() * sizeof(float), shape.data(),
                                               shape.size(), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
                                               &made));
    return made;
  }

  void check(OrtStatus* status) const {
    if (status == nullptr) return;
    const std::string message = api_->GetErrorMessage(status);
    api_->ReleaseStatus(status);
    throw Failure{kBundle, "Expected ONNX Runtime to run the scorer, got: " + message};
  }

  Schema schema_;
  std::string output_;
  std::vector<float> x_, center_;
  const OrtApi* api_ = nullptr;
  OrtEnv* environment_ = nullptr;
  OrtSessionOptions* options_ = nullptr;
  OrtSession* session_ = nullptr;
  OrtMemoryInfo* memory_ = nullptr;
  OrtValue* inputs_[2] = {nullptr, nullptr};
};

void run(int count, char** arguments) {
  if (count < 2 || count > 3) {
    throw Failure{kUsage, "Expected a folder and perhaps an output, got other arguments; call "
                          "score DIR [OUTPUT] < records.csv"};
  }
  const std::string folder = arguments[1];
  const Schema schema = read_schema(read_file(folder + "/manifest.json"));
  Scorer scorer(folder, schema, count == 3 ? arguments[2] : "score");
  std::size_t number = 0;
  for (std::string line; std::getline(std::cin, line);) {
    if (line.empty() || line == "\r") continue;
    std::printf("%.9g\n", scorer.score(read_record(line, schema.size(), ++number)));
  }
}

}  // namespace

int main(int count, char** arguments) {
  // ONNX Runtime 1.29 and later reports its use to its maker by default.
  setenv("ORT_DISABLE_TELEMETRY", "1", 1);
  try {
    run(count, arguments);
  } catch (const Failure& failure) {
    std::cerr << "error: " << failure.sentence << '\n';
    return failure.code;
  } catch (const std::exception& error) {  // std::stod of a damaged manifest
    std::cerr << "error: Expected a verified bundle, got " << error.what()
              << "; extract it again.\n";
    return kBundle;
  }
  return std::fflush(stdout) == 0 ? 0 : 1;
}
