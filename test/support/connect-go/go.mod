module ipdr/test/connect-go

go 1.25.0

require connectrpc.com/connect v1.12.0

require google.golang.org/protobuf v1.31.0 // indirect
