// Original file: proto/keyprovider/keyprovider.proto

import type * as grpc from '@grpc/grpc-js'
import type { MethodDefinition } from '@grpc/proto-loader'
import type { keyProviderKeyWrapProtocolInput as _keyprovider_keyProviderKeyWrapProtocolInput, keyProviderKeyWrapProtocolInput__Output as _keyprovider_keyProviderKeyWrapProtocolInput__Output } from '../keyprovider/keyProviderKeyWrapProtocolInput.ts';
import type { keyProviderKeyWrapProtocolOutput as _keyprovider_keyProviderKeyWrapProtocolOutput, keyProviderKeyWrapProtocolOutput__Output as _keyprovider_keyProviderKeyWrapProtocolOutput__Output } from '../keyprovider/keyProviderKeyWrapProtocolOutput.ts';

export interface KeyProviderServiceClient extends grpc.Client {
  UnWrapKey(argument: _keyprovider_keyProviderKeyWrapProtocolInput, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_keyprovider_keyProviderKeyWrapProtocolOutput__Output>): grpc.ClientUnaryCall;
  UnWrapKey(argument: _keyprovider_keyProviderKeyWrapProtocolInput, metadata: grpc.Metadata, callback: grpc.requestCallback<_keyprovider_keyProviderKeyWrapProtocolOutput__Output>): grpc.ClientUnaryCall;
  UnWrapKey(argument: _keyprovider_keyProviderKeyWrapProtocolInput, options: grpc.CallOptions, callback: grpc.requestCallback<_keyprovider_keyProviderKeyWrapProtocolOutput__Output>): grpc.ClientUnaryCall;
  UnWrapKey(argument: _keyprovider_keyProviderKeyWrapProtocolInput, callback: grpc.requestCallback<_keyprovider_keyProviderKeyWrapProtocolOutput__Output>): grpc.ClientUnaryCall;
  unWrapKey(argument: _keyprovider_keyProviderKeyWrapProtocolInput, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_keyprovider_keyProviderKeyWrapProtocolOutput__Output>): grpc.ClientUnaryCall;
  unWrapKey(argument: _keyprovider_keyProviderKeyWrapProtocolInput, metadata: grpc.Metadata, callback: grpc.requestCallback<_keyprovider_keyProviderKeyWrapProtocolOutput__Output>): grpc.ClientUnaryCall;
  unWrapKey(argument: _keyprovider_keyProviderKeyWrapProtocolInput, options: grpc.CallOptions, callback: grpc.requestCallback<_keyprovider_keyProviderKeyWrapProtocolOutput__Output>): grpc.ClientUnaryCall;
  unWrapKey(argument: _keyprovider_keyProviderKeyWrapProtocolInput, callback: grpc.requestCallback<_keyprovider_keyProviderKeyWrapProtocolOutput__Output>): grpc.ClientUnaryCall;
  
  WrapKey(argument: _keyprovider_keyProviderKeyWrapProtocolInput, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_keyprovider_keyProviderKeyWrapProtocolOutput__Output>): grpc.ClientUnaryCall;
  WrapKey(argument: _keyprovider_keyProviderKeyWrapProtocolInput, metadata: grpc.Metadata, callback: grpc.requestCallback<_keyprovider_keyProviderKeyWrapProtocolOutput__Output>): grpc.ClientUnaryCall;
  WrapKey(argument: _keyprovider_keyProviderKeyWrapProtocolInput, options: grpc.CallOptions, callback: grpc.requestCallback<_keyprovider_keyProviderKeyWrapProtocolOutput__Output>): grpc.ClientUnaryCall;
  WrapKey(argument: _keyprovider_keyProviderKeyWrapProtocolInput, callback: grpc.requestCallback<_keyprovider_keyProviderKeyWrapProtocolOutput__Output>): grpc.ClientUnaryCall;
  wrapKey(argument: _keyprovider_keyProviderKeyWrapProtocolInput, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_keyprovider_keyProviderKeyWrapProtocolOutput__Output>): grpc.ClientUnaryCall;
  wrapKey(argument: _keyprovider_keyProviderKeyWrapProtocolInput, metadata: grpc.Metadata, callback: grpc.requestCallback<_keyprovider_keyProviderKeyWrapProtocolOutput__Output>): grpc.ClientUnaryCall;
  wrapKey(argument: _keyprovider_keyProviderKeyWrapProtocolInput, options: grpc.CallOptions, callback: grpc.requestCallback<_keyprovider_keyProviderKeyWrapProtocolOutput__Output>): grpc.ClientUnaryCall;
  wrapKey(argument: _keyprovider_keyProviderKeyWrapProtocolInput, callback: grpc.requestCallback<_keyprovider_keyProviderKeyWrapProtocolOutput__Output>): grpc.ClientUnaryCall;
  
}

export interface KeyProviderServiceHandlers extends grpc.UntypedServiceImplementation {
  UnWrapKey: grpc.handleUnaryCall<_keyprovider_keyProviderKeyWrapProtocolInput__Output, _keyprovider_keyProviderKeyWrapProtocolOutput>;
  
  WrapKey: grpc.handleUnaryCall<_keyprovider_keyProviderKeyWrapProtocolInput__Output, _keyprovider_keyProviderKeyWrapProtocolOutput>;
  
}

export interface KeyProviderServiceDefinition extends grpc.ServiceDefinition {
  UnWrapKey: MethodDefinition<_keyprovider_keyProviderKeyWrapProtocolInput, _keyprovider_keyProviderKeyWrapProtocolOutput, _keyprovider_keyProviderKeyWrapProtocolInput__Output, _keyprovider_keyProviderKeyWrapProtocolOutput__Output>
  WrapKey: MethodDefinition<_keyprovider_keyProviderKeyWrapProtocolInput, _keyprovider_keyProviderKeyWrapProtocolOutput, _keyprovider_keyProviderKeyWrapProtocolInput__Output, _keyprovider_keyProviderKeyWrapProtocolOutput__Output>
}
