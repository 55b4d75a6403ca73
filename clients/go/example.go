// Deploys a model, streams from it, and does what a caller does when things go otherwise:
// example HOST:PORT SOURCE
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	sllm "serverlessllm/v1"
)

const name = "from-go"

type caller struct {
	deployments sllm.DeploymentServiceClient
	inference   sllm.InferenceServiceClient
}

// Greedy, so that all generations of a prompt are the same.
func request(maxTokens int32) *sllm.GenerateRequest {
	return &sllm.GenerateRequest{
		Deployment: name,
		Prompt:     &sllm.GenerateRequest_Text{Text: "The for statement"},
		Sampling:   &sllm.SamplingParams{Temperature: proto.Float64(0)},
		MaxTokens:  proto.Int32(maxTokens),
		IgnoreEos:  true,
	}
}

func (c *caller) deploy(ctx context.Context, source string) error {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	engine := &sllm.EngineConfig{Engine: "transformers"}
	deploy := &sllm.DeployRequest{Name: name, Source: source, Engine: engine}
	if _, err := c.deployments.Deploy(ctx, deploy); err != nil {
		return err
	}
	changes, err := c.deployments.WatchDeployment(ctx, &sllm.WatchDeploymentRequest{Name: name})
	for err == nil {
		var change *sllm.WatchDeploymentResponse
		if change, err = changes.Recv(); err != nil {
			break
		}
		switch found := change.GetDeployment(); found.GetState() {
		case sllm.DeploymentState_DEPLOYMENT_STATE_FAILED:
			return fmt.Errorf("%s", found.GetMessage())
		case sllm.DeploymentState_DEPLOYMENT_STATE_AVAILABLE:
			return nil
		}
	}
	return err
}

// Reads a stream to its end, or for as long as `more` says.
func (c *caller) read(ctx context.Context, asked *sllm.GenerateRequest, more func(*sllm.GenerateResponse) bool) error {
	stream, err := c.inference.Generate(ctx, asked)
	for err == nil {
		var said *sllm.GenerateResponse
		if said, err = stream.Recv(); err == nil && !more(said) {
			return nil
		}
	}
	if err == io.EOF {
		return nil
	}
	return err
}

func (c *caller) stream(ctx context.Context, asked *sllm.GenerateRequest) (string, error) {
	text := ""
	err := c.read(ctx, asked, func(said *sllm.GenerateResponse) bool {
		text += said.GetTokens().GetText()
		return true
	})
	return text, err
}

// Errors are told apart by their reason, never by their message.
func reasonOf(err error) string {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return fmt.Sprintf("%s %s", status.Code(err), info.GetReason())
		}
	}
	return "none"
}

// Leaving the call cancels the generation.
func (c *caller) cancel(ctx context.Context) string {
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	err := c.read(ctx, request(400), func(said *sllm.GenerateResponse) bool {
		if said.GetTokens() != nil {
			leave()
		}
		return true
	})
	return status.Code(err).String()
}

// Breaks a stream off in the middle, and reads on with the tokens that it has.
func (c *caller) resume(ctx context.Context) (string, error) {
	begun := request(6)
	begun.RequestId = fmt.Sprintf("%s-%d", name, os.Getpid())
	begun.Linger = durationpb.New(30 * time.Second)
	before, got, next := "", &sllm.Continuation{}, int64(0)
	broken, leave := context.WithCancel(ctx)
	err := c.read(broken, begun, func(said *sllm.GenerateResponse) bool {
		next = said.GetSequence() + 1
		if started := said.GetStarted(); started != nil {
			got.Identity = started.GetIdentity()
		}
		got.TokenIds = append(got.TokenIds, said.GetTokens().GetTokenIds()...)
		before += said.GetTokens().GetText()
		return said.GetTokens() == nil
	})
	leave() // as if the connection had been lost
	if err != nil {
		return "", err
	}
	begun.Continuation = got
	begun.ResumeFromSequence = proto.Int64(next)
	after, err := c.stream(ctx, begun)
	return before + after, err
}

func run(address, source string) error {
	ctx, done := context.WithTimeout(context.Background(), time.Minute)
	defer done()
	connection, err := grpc.DialContext(ctx, address, grpc.WithInsecure())
	if err != nil {
		return err
	}
	defer connection.Close()
	c := &caller{sllm.NewDeploymentServiceClient(connection), sllm.NewInferenceServiceClient(connection)}
	if err := c.deploy(ctx, source); err != nil {
		return err
	}
	text, err := c.stream(ctx, request(6))
	if err != nil {
		return err
	}
	fmt.Printf("streamed: %s\n", text)
	wrong := request(4)
	wrong.Deployment = "nobody"
	_, err = c.stream(ctx, wrong)
	fmt.Printf("refused: %s\n", reasonOf(err))
	fmt.Printf("cancelled: %s\n", c.cancel(ctx))
	if text, err = c.resume(ctx); err != nil {
		return err
	}
	fmt.Printf("resumed: %s\n", text)
	_, err = c.deployments.DeleteDeployment(ctx, &sllm.DeleteDeploymentRequest{Name: name})
	return err
}

func main() {
	if err := run(os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}
