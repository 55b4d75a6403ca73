// Deploys a model, streams from it, and does what a caller does when things go otherwise:
// example HOST:PORT SOURCE
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <iostream>
#include <stdexcept>
#include <string>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "serverlessllm/v1/deployment_service.grpc.pb.h"
#include "serverlessllm/v1/inference_service.grpc.pb.h"

namespace sllm = serverlessllm::v1;

constexpr char kName[] = "from-cpp";

void Check(const grpc::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.error_message());
}

// Greedy, so that all generations of a prompt are the same.
sllm::GenerateRequest Request(int max_tokens) {
  sllm::GenerateRequest request;
  request.set_deployment(kName);
  request.set_text("The for statement");
  request.mutable_sampling()->set_temperature(0);
  request.set_max_tokens(max_tokens);
  request.set_ignore_eos(true);
  return request;
}

class Caller {
 public:
  explicit Caller(const std::shared_ptr<grpc::Channel>& channel)
      : deployments_(sllm::DeploymentService::NewStub(channel)),
        inference_(sllm::InferenceService::NewStub(channel)) {}

  void Deploy(const std::string& source) {
    sllm::DeployRequest request;
    request.set_name(kName);
    request.set_source(source);
    request.mutable_engine()->set_engine("transformers");
    grpc::ClientContext deploying;
    sllm::DeployResponse deployed;
    Check(deployments_->Deploy(&deploying, request, &deployed));
    sllm::WatchDeploymentRequest watch;
    watch.set_name(kName);
    grpc::ClientContext watching;
    auto changes = deployments_->WatchDeployment(&watching, watch);
    sllm::WatchDeploymentResponse change;
    while (changes->Read(&change)) {
      const auto& found = change.deployment();
      if (found.state() == sllm::DEPLOYMENT_STATE_FAILED) throw std::runtime_error(found.message());
      if (found.state() == sllm::DEPLOYMENT_STATE_AVAILABLE) return watching.TryCancel();
    }
    Check(changes->Finish());
  }

  // Reads a stream to its end. Cancelling its context ends it, and the generation.
  grpc::Status Read(const sllm::GenerateRequest& request,
                    const std::function<void(const sllm::GenerateResponse&, grpc::ClientContext&)>& take) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1));
    auto stream = inference_->Generate(&context, request);
    sllm::GenerateResponse said;
    while (stream->Read(&said)) take(said, context);
    return stream->Finish();
  }

  std::string Stream(const sllm::GenerateRequest& request) {
    std::string text;
    Check(Read(request, [&](const auto& said, auto&) { text += said.tokens().text(); }));
    return text;
  }

  // Errors are told apart by their reason, never by their message.
  std::string ReasonOf(const sllm::GenerateRequest& wrong) {
    google::rpc::Status status;
    status.ParseFromString(Read(wrong, [](const auto&, auto&) {}).error_details());
    google::rpc::ErrorInfo info;
    for (const auto& detail : status.details()) {
      if (detail.UnpackTo(&info)) return std::to_string(status.code()) + " " + info.reason();
    }
    return "none";
  }

  std::string Cancel() {
    auto status = Read(Request(400), [](const auto& said, auto& context) {
      if (said.has_tokens()) context.TryCancel();
    });
    return status.error_code() == grpc::StatusCode::CANCELLED ? "Canceled" : "none";
  }

  // Breaks a stream off in the middle, and reads on with the tokens that it has.
  std::string Resume() {
    auto begun = Request(6);
    begun.set_request_id(std::string(kName) + "-" + std::to_string(getpid()));
    begun.mutable_linger()->set_seconds(30);
    sllm::Continuation got;
    std::string before;
    int64_t next = 0;
    Read(begun, [&](const auto& said, auto& context) {
      if (got.token_ids_size() > 0) return;  // came while the connection was being lost
      next = said.sequence() + 1;
      if (said.has_started()) got.set_identity(said.started().identity());
      got.mutable_token_ids()->MergeFrom(said.tokens().token_ids());
      before += said.tokens().text();
      if (said.has_tokens()) context.TryCancel();  // as if the connection had been lost
    });
    *begun.mutable_continuation() = got;
    begun.set_resume_from_sequence(next);
    return before + Stream(begun);
  }

  void Delete() {
    sllm::DeleteDeploymentRequest request;
    request.set_name(kName);
    grpc::ClientContext context;
    sllm::DeleteDeploymentResponse deleted;
    Check(deployments_->DeleteDeployment(&context, request, &deleted));
  }

 private:
  std::unique_ptr<sllm::DeploymentService::Stub> deployments_;
  std::unique_ptr<sllm::InferenceService::Stub> inference_;
};

int main(int, char** arguments) {
  Caller caller(grpc::CreateChannel(arguments[1], grpc::InsecureChannelCredentials()));
  caller.Deploy(arguments[2]);
  std::cout << "streamed: " << caller.Stream(Request(6)) << "\n";
  auto wrong = Request(4);
  wrong.set_deployment("nobody");
  std::cout << "refused: " << caller.ReasonOf(wrong) << "\n";
  std::cout << "cancelled: " << caller.Cancel() << "\n";
  std::cout << "resumed: " << caller.Resume() << "\n";
  caller.Delete();
}
