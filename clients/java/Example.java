import com.google.protobuf.Any;
import com.google.protobuf.Duration;
import com.google.rpc.ErrorInfo;
import io.grpc.Context;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.util.Iterator;
import java.util.concurrent.TimeUnit;
import java.util.function.Predicate;
import serverlessllm.v1.Continuation;
import serverlessllm.v1.DeleteDeploymentRequest;
import serverlessllm.v1.DeployRequest;
import serverlessllm.v1.Deployment;
import serverlessllm.v1.DeploymentServiceGrpc;
import serverlessllm.v1.DeploymentState;
import serverlessllm.v1.EngineConfig;
import serverlessllm.v1.GenerateRequest;
import serverlessllm.v1.GenerateResponse;
import serverlessllm.v1.InferenceServiceGrpc;
import serverlessllm.v1.SamplingParams;
import serverlessllm.v1.WatchDeploymentRequest;
import serverlessllm.v1.WatchDeploymentResponse;

/**
 * Deploys a model, streams from it, and does what a caller does when things go otherwise:
 * {@code example HOST:PORT SOURCE}.
 */
public final class Example {
    private static final String NAME = "from-java";

    private final DeploymentServiceGrpc.DeploymentServiceBlockingStub deployments;
    private final InferenceServiceGrpc.InferenceServiceBlockingStub inference;

    private Example(ManagedChannel channel) {
        deployments = DeploymentServiceGrpc.newBlockingStub(channel);
        inference = InferenceServiceGrpc.newBlockingStub(channel);
    }

    /** Greedy, so that all generations of a prompt are the same. */
    private static GenerateRequest.Builder request(int maxTokens) {
        return GenerateRequest.newBuilder()
                .setDeployment(NAME)
                .setText("The for statement")
                .setSampling(SamplingParams.newBuilder().setTemperature(0))
                .setMaxTokens(maxTokens)
                .setIgnoreEos(true);
    }

    private void deploy(String source) {
        deployments.deploy(DeployRequest.newBuilder()
                .setName(NAME)
                .setSource(source)
                .setEngine(EngineConfig.newBuilder().setEngine("transformers"))
                .build());
        Context.CancellableContext leaving = Context.current().withCancellation();
        leaving.run(() -> {
            WatchDeploymentRequest watch = WatchDeploymentRequest.newBuilder().setName(NAME).build();
            Iterator<WatchDeploymentResponse> changes = deployments.watchDeployment(watch);
            while (changes.hasNext()) {
                Deployment found = changes.next().getDeployment();
                if (found.getState() == DeploymentState.DEPLOYMENT_STATE_FAILED) {
                    throw new IllegalStateException(found.getMessage());
                }
                if (found.getState() == DeploymentState.DEPLOYMENT_STATE_AVAILABLE) {
                    return;
                }
            }
        });
        leaving.cancel(null);
    }

    /** Reads a stream to its end, or for as long as {@code more} says: then its call is left. */
    private void read(GenerateRequest request, Predicate<GenerateResponse> more) {
        Context.CancellableContext leaving = Context.current().withCancellation();
        leaving.run(() -> {
            Iterator<GenerateResponse> said =
                    inference.withDeadlineAfter(1, TimeUnit.MINUTES).generate(request);
            while (said.hasNext()) {
                if (!more.test(said.next())) {
                    leaving.cancel(null);
                }
            }
        });
        leaving.cancel(null);
    }

    private String stream(GenerateRequest request) {
        StringBuilder text = new StringBuilder();
        read(request, said -> text.append(said.getTokens().getText()) != null);
        return text.toString();
    }

    /** Errors are told apart by their reason, never by their message. */
    private String reasonOf(GenerateRequest wrong) throws Exception {
        try {
            read(wrong, said -> true);
        } catch (StatusRuntimeException error) {
            for (Any detail : StatusProto.fromThrowable(error).getDetailsList()) {
                if (detail.is(ErrorInfo.class)) {
                    return error.getStatus().getCode() + " " + detail.unpack(ErrorInfo.class).getReason();
                }
            }
        }
        return "none";
    }

    /** Leaving the call cancels the generation. */
    private String cancel() {
        try {
            read(request(400).build(), said -> !said.hasTokens());
        } catch (StatusRuntimeException error) {
            return error.getStatus().getCode() == Status.Code.CANCELLED ? "Canceled" : "none";
        }
        return "none";
    }

    /** Breaks a stream off in the middle, and reads on with the tokens that it has. */
    private String resume() {
        GenerateRequest.Builder begun = request(6)
                .setRequestId(NAME + "-" + ProcessHandle.current().pid())
                .setLinger(Duration.newBuilder().setSeconds(30));
        Continuation.Builder got = Continuation.newBuilder();
        StringBuilder text = new StringBuilder();
        try {
            read(begun.build(), said -> {
                begun.setResumeFromSequence(said.getSequence() + 1);
                if (said.hasStarted()) {
                    got.setIdentity(said.getStarted().getIdentity());
                }
                got.addAllTokenIds(said.getTokens().getTokenIdsList());
                text.append(said.getTokens().getText());
                return !said.hasTokens(); // as if the connection had been lost
            });
        } catch (StatusRuntimeException error) {
            if (error.getStatus().getCode() != Status.Code.CANCELLED) {
                throw error;
            }
        }
        return text + stream(begun.setContinuation(got).build());
    }

    public static void main(String[] arguments) throws Exception {
        ManagedChannel channel = ManagedChannelBuilder.forTarget(arguments[0]).usePlaintext().build();
        try {
            Example example = new Example(channel);
            example.deploy(arguments[1]);
            System.out.println("streamed: " + example.stream(request(6).build()));
            System.out.println("refused: " + example.reasonOf(request(4).setDeployment("nobody").build()));
            System.out.println("cancelled: " + example.cancel());
            System.out.println("resumed: " + example.resume());
            example.deployments.deleteDeployment(
                    DeleteDeploymentRequest.newBuilder().setName(NAME).build());
        } finally {
            channel.shutdownNow().awaitTermination(10, TimeUnit.SECONDS);
        }
    }
}
