// A client as Trusted Pods' has it: connect-go 1.12 on Go's default HTTP client. It reads calls as lines of JSON, makes them one after
// the other, and writes what came of each; messages are bytes to it.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"

	"connectrpc.com/connect"
)

type call struct {
	Procedure string `json:"procedure"`
	Token     string `json:"token"`
	Request   []byte `json:"request"`
	// How many messages of a stream are read; 0: the call is unary.
	Messages int `json:"messages"`
}

type answer struct {
	Code     string   `json:"code,omitempty"`
	Message  string   `json:"message,omitempty"`
	Messages [][]byte `json:"messages"`
}

type raw struct{ bytes []byte }

// Under the name of protobuf's codec.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(message any) ([]byte, error) { return message.(*raw).bytes, nil }

func (rawCodec) Unmarshal(bytes []byte, message any) error {
	message.(*raw).bytes = append([]byte(nil), bytes...)
	return nil
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	answers := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var wanted call
		if err := json.Unmarshal(lines.Bytes(), &wanted); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		if err := answers.Encode(perform(os.Args[1], wanted)); err != nil {
			os.Exit(1)
		}
	}
}

func perform(url string, wanted call) answer {
	client := connect.NewClient[raw, raw](http.DefaultClient, url+wanted.Procedure, connect.WithCodec(rawCodec{}))
	request := connect.NewRequest(&raw{wanted.Request})
	request.Header().Set("Authorization", wanted.Token)
	given := answer{Messages: [][]byte{}}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	if wanted.Messages == 0 {
		response, err := client.CallUnary(ctx, request)
		if err != nil {
			return failed(given, err)
		}
		given.Messages = append(given.Messages, response.Msg.bytes)
		return given
	}
	stream, err := client.CallServerStream(ctx, request)
	if err != nil {
		return failed(given, err)
	}
	// Not Close, which reads on for as long as the server writes.
	defer stop()
	for len(given.Messages) < wanted.Messages && stream.Receive() {
		given.Messages = append(given.Messages, stream.Msg().bytes)
	}
	if stream.Err() != nil {
		return failed(given, stream.Err())
	}
	return given
}

func failed(given answer, err error) answer {
	given.Code = connect.CodeOf(err).String()
	given.Message = err.Error()
	return given
}
