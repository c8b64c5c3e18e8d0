// Original file: proto/ipdr/agent.proto

import type * as grpc from '@grpc/grpc-js'
import type { MethodDefinition } from '@grpc/proto-loader'
import type { CheckLayerRequest as _ipdr_v1_CheckLayerRequest, CheckLayerRequest__Output as _ipdr_v1_CheckLayerRequest__Output } from '../../ipdr/v1/CheckLayerRequest.ts';
import type { CheckLayerResponse as _ipdr_v1_CheckLayerResponse, CheckLayerResponse__Output as _ipdr_v1_CheckLayerResponse__Output } from '../../ipdr/v1/CheckLayerResponse.ts';
import type { CollectGarbageRequest as _ipdr_v1_CollectGarbageRequest, CollectGarbageRequest__Output as _ipdr_v1_CollectGarbageRequest__Output } from '../../ipdr/v1/CollectGarbageRequest.ts';
import type { CollectGarbageResponse as _ipdr_v1_CollectGarbageResponse, CollectGarbageResponse__Output as _ipdr_v1_CollectGarbageResponse__Output } from '../../ipdr/v1/CollectGarbageResponse.ts';
import type { FinishRecordingRequest as _ipdr_v1_FinishRecordingRequest, FinishRecordingRequest__Output as _ipdr_v1_FinishRecordingRequest__Output } from '../../ipdr/v1/FinishRecordingRequest.ts';
import type { FinishRecordingResponse as _ipdr_v1_FinishRecordingResponse, FinishRecordingResponse__Output as _ipdr_v1_FinishRecordingResponse__Output } from '../../ipdr/v1/FinishRecordingResponse.ts';
import type { LayerIndexPart as _ipdr_v1_LayerIndexPart, LayerIndexPart__Output as _ipdr_v1_LayerIndexPart__Output } from '../../ipdr/v1/LayerIndexPart.ts';
import type { LayerIndexRequest as _ipdr_v1_LayerIndexRequest, LayerIndexRequest__Output as _ipdr_v1_LayerIndexRequest__Output } from '../../ipdr/v1/LayerIndexRequest.ts';
import type { ListImagesRequest as _ipdr_v1_ListImagesRequest, ListImagesRequest__Output as _ipdr_v1_ListImagesRequest__Output } from '../../ipdr/v1/ListImagesRequest.ts';
import type { ListImagesResponse as _ipdr_v1_ListImagesResponse, ListImagesResponse__Output as _ipdr_v1_ListImagesResponse__Output } from '../../ipdr/v1/ListImagesResponse.ts';
import type { ListLayersRequest as _ipdr_v1_ListLayersRequest, ListLayersRequest__Output as _ipdr_v1_ListLayersRequest__Output } from '../../ipdr/v1/ListLayersRequest.ts';
import type { ListLayersResponse as _ipdr_v1_ListLayersResponse, ListLayersResponse__Output as _ipdr_v1_ListLayersResponse__Output } from '../../ipdr/v1/ListLayersResponse.ts';
import type { PullProgress as _ipdr_v1_PullProgress, PullProgress__Output as _ipdr_v1_PullProgress__Output } from '../../ipdr/v1/PullProgress.ts';
import type { PullRequest as _ipdr_v1_PullRequest, PullRequest__Output as _ipdr_v1_PullRequest__Output } from '../../ipdr/v1/PullRequest.ts';
import type { RecordProgress as _ipdr_v1_RecordProgress, RecordProgress__Output as _ipdr_v1_RecordProgress__Output } from '../../ipdr/v1/RecordProgress.ts';
import type { RecordRequest as _ipdr_v1_RecordRequest, RecordRequest__Output as _ipdr_v1_RecordRequest__Output } from '../../ipdr/v1/RecordRequest.ts';
import type { RemoveLayerRequest as _ipdr_v1_RemoveLayerRequest, RemoveLayerRequest__Output as _ipdr_v1_RemoveLayerRequest__Output } from '../../ipdr/v1/RemoveLayerRequest.ts';
import type { RemoveLayerResponse as _ipdr_v1_RemoveLayerResponse, RemoveLayerResponse__Output as _ipdr_v1_RemoveLayerResponse__Output } from '../../ipdr/v1/RemoveLayerResponse.ts';
import type { StatusRequest as _ipdr_v1_StatusRequest, StatusRequest__Output as _ipdr_v1_StatusRequest__Output } from '../../ipdr/v1/StatusRequest.ts';
import type { StatusResponse as _ipdr_v1_StatusResponse, StatusResponse__Output as _ipdr_v1_StatusResponse__Output } from '../../ipdr/v1/StatusResponse.ts';
import type { WaitedForRequest as _ipdr_v1_WaitedForRequest, WaitedForRequest__Output as _ipdr_v1_WaitedForRequest__Output } from '../../ipdr/v1/WaitedForRequest.ts';
import type { WaitedForResponse as _ipdr_v1_WaitedForResponse, WaitedForResponse__Output as _ipdr_v1_WaitedForResponse__Output } from '../../ipdr/v1/WaitedForResponse.ts';

export interface AgentClient extends grpc.Client {
  CheckLayer(argument: _ipdr_v1_CheckLayerRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_CheckLayerResponse__Output>): grpc.ClientUnaryCall;
  CheckLayer(argument: _ipdr_v1_CheckLayerRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_ipdr_v1_CheckLayerResponse__Output>): grpc.ClientUnaryCall;
  CheckLayer(argument: _ipdr_v1_CheckLayerRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_CheckLayerResponse__Output>): grpc.ClientUnaryCall;
  CheckLayer(argument: _ipdr_v1_CheckLayerRequest, callback: grpc.requestCallback<_ipdr_v1_CheckLayerResponse__Output>): grpc.ClientUnaryCall;
  checkLayer(argument: _ipdr_v1_CheckLayerRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_CheckLayerResponse__Output>): grpc.ClientUnaryCall;
  checkLayer(argument: _ipdr_v1_CheckLayerRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_ipdr_v1_CheckLayerResponse__Output>): grpc.ClientUnaryCall;
  checkLayer(argument: _ipdr_v1_CheckLayerRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_CheckLayerResponse__Output>): grpc.ClientUnaryCall;
  checkLayer(argument: _ipdr_v1_CheckLayerRequest, callback: grpc.requestCallback<_ipdr_v1_CheckLayerResponse__Output>): grpc.ClientUnaryCall;
  
  CollectGarbage(argument: _ipdr_v1_CollectGarbageRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_CollectGarbageResponse__Output>): grpc.ClientUnaryCall;
  CollectGarbage(argument: _ipdr_v1_CollectGarbageRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_ipdr_v1_CollectGarbageResponse__Output>): grpc.ClientUnaryCall;
  CollectGarbage(argument: _ipdr_v1_CollectGarbageRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_CollectGarbageResponse__Output>): grpc.ClientUnaryCall;
  CollectGarbage(argument: _ipdr_v1_CollectGarbageRequest, callback: grpc.requestCallback<_ipdr_v1_CollectGarbageResponse__Output>): grpc.ClientUnaryCall;
  collectGarbage(argument: _ipdr_v1_CollectGarbageRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_CollectGarbageResponse__Output>): grpc.ClientUnaryCall;
  collectGarbage(argument: _ipdr_v1_CollectGarbageRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_ipdr_v1_CollectGarbageResponse__Output>): grpc.ClientUnaryCall;
  collectGarbage(argument: _ipdr_v1_CollectGarbageRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_CollectGarbageResponse__Output>): grpc.ClientUnaryCall;
  collectGarbage(argument: _ipdr_v1_CollectGarbageRequest, callback: grpc.requestCallback<_ipdr_v1_CollectGarbageResponse__Output>): grpc.ClientUnaryCall;
  
  FinishRecording(argument: _ipdr_v1_FinishRecordingRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_FinishRecordingResponse__Output>): grpc.ClientUnaryCall;
  FinishRecording(argument: _ipdr_v1_FinishRecordingRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_ipdr_v1_FinishRecordingResponse__Output>): grpc.ClientUnaryCall;
  FinishRecording(argument: _ipdr_v1_FinishRecordingRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_FinishRecordingResponse__Output>): grpc.ClientUnaryCall;
  FinishRecording(argument: _ipdr_v1_FinishRecordingRequest, callback: grpc.requestCallback<_ipdr_v1_FinishRecordingResponse__Output>): grpc.ClientUnaryCall;
  finishRecording(argument: _ipdr_v1_FinishRecordingRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_FinishRecordingResponse__Output>): grpc.ClientUnaryCall;
  finishRecording(argument: _ipdr_v1_FinishRecordingRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_ipdr_v1_FinishRecordingResponse__Output>): grpc.ClientUnaryCall;
  finishRecording(argument: _ipdr_v1_FinishRecordingRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_FinishRecordingResponse__Output>): grpc.ClientUnaryCall;
  finishRecording(argument: _ipdr_v1_FinishRecordingRequest, callback: grpc.requestCallback<_ipdr_v1_FinishRecordingResponse__Output>): grpc.ClientUnaryCall;
  
  LayerIndex(argument: _ipdr_v1_LayerIndexRequest, metadata: grpc.Metadata, options?: grpc.CallOptions): grpc.ClientReadableStream<_ipdr_v1_LayerIndexPart__Output>;
  LayerIndex(argument: _ipdr_v1_LayerIndexRequest, options?: grpc.CallOptions): grpc.ClientReadableStream<_ipdr_v1_LayerIndexPart__Output>;
  layerIndex(argument: _ipdr_v1_LayerIndexRequest, metadata: grpc.Metadata, options?: grpc.CallOptions): grpc.ClientReadableStream<_ipdr_v1_LayerIndexPart__Output>;
  layerIndex(argument: _ipdr_v1_LayerIndexRequest, options?: grpc.CallOptions): grpc.ClientReadableStream<_ipdr_v1_LayerIndexPart__Output>;
  
  ListImages(argument: _ipdr_v1_ListImagesRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_ListImagesResponse__Output>): grpc.ClientUnaryCall;
  ListImages(argument: _ipdr_v1_ListImagesRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_ipdr_v1_ListImagesResponse__Output>): grpc.ClientUnaryCall;
  ListImages(argument: _ipdr_v1_ListImagesRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_ListImagesResponse__Output>): grpc.ClientUnaryCall;
  ListImages(argument: _ipdr_v1_ListImagesRequest, callback: grpc.requestCallback<_ipdr_v1_ListImagesResponse__Output>): grpc.ClientUnaryCall;
  listImages(argument: _ipdr_v1_ListImagesRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_ListImagesResponse__Output>): grpc.ClientUnaryCall;
  listImages(argument: _ipdr_v1_ListImagesRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_ipdr_v1_ListImagesResponse__Output>): grpc.ClientUnaryCall;
  listImages(argument: _ipdr_v1_ListImagesRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_ListImagesResponse__Output>): grpc.ClientUnaryCall;
  listImages(argument: _ipdr_v1_ListImagesRequest, callback: grpc.requestCallback<_ipdr_v1_ListImagesResponse__Output>): grpc.ClientUnaryCall;
  
  ListLayers(argument: _ipdr_v1_ListLayersRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_ListLayersResponse__Output>): grpc.ClientUnaryCall;
  ListLayers(argument: _ipdr_v1_ListLayersRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_ipdr_v1_ListLayersResponse__Output>): grpc.ClientUnaryCall;
  ListLayers(argument: _ipdr_v1_ListLayersRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_ListLayersResponse__Output>): grpc.ClientUnaryCall;
  ListLayers(argument: _ipdr_v1_ListLayersRequest, callback: grpc.requestCallback<_ipdr_v1_ListLayersResponse__Output>): grpc.ClientUnaryCall;
  listLayers(argument: _ipdr_v1_ListLayersRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_ListLayersResponse__Output>): grpc.ClientUnaryCall;
  listLayers(argument: _ipdr_v1_ListLayersRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_ipdr_v1_ListLayersResponse__Output>): grpc.ClientUnaryCall;
  listLayers(argument: _ipdr_v1_ListLayersRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_ListLayersResponse__Output>): grpc.ClientUnaryCall;
  listLayers(argument: _ipdr_v1_ListLayersRequest, callback: grpc.requestCallback<_ipdr_v1_ListLayersResponse__Output>): grpc.ClientUnaryCall;
  
  Pull(argument: _ipdr_v1_PullRequest, metadata: grpc.Metadata, options?: grpc.CallOptions): grpc.ClientReadableStream<_ipdr_v1_PullProgress__Output>;
  Pull(argument: _ipdr_v1_PullRequest, options?: grpc.CallOptions): grpc.ClientReadableStream<_ipdr_v1_PullProgress__Output>;
  pull(argument: _ipdr_v1_PullRequest, metadata: grpc.Metadata, options?: grpc.CallOptions): grpc.ClientReadableStream<_ipdr_v1_PullProgress__Output>;
  pull(argument: _ipdr_v1_PullRequest, options?: grpc.CallOptions): grpc.ClientReadableStream<_ipdr_v1_PullProgress__Output>;
  
  Record(argument: _ipdr_v1_RecordRequest, metadata: grpc.Metadata, options?: grpc.CallOptions): grpc.ClientReadableStream<_ipdr_v1_RecordProgress__Output>;
  Record(argument: _ipdr_v1_RecordRequest, options?: grpc.CallOptions): grpc.ClientReadableStream<_ipdr_v1_RecordProgress__Output>;
  record(argument: _ipdr_v1_RecordRequest, metadata: grpc.Metadata, options?: grpc.CallOptions): grpc.ClientReadableStream<_ipdr_v1_RecordProgress__Output>;
  record(argument: _ipdr_v1_RecordRequest, options?: grpc.CallOptions): grpc.ClientReadableStream<_ipdr_v1_RecordProgress__Output>;
  
  RemoveLayer(argument: _ipdr_v1_RemoveLayerRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_RemoveLayerResponse__Output>): grpc.ClientUnaryCall;
  RemoveLayer(argument: _ipdr_v1_RemoveLayerRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_ipdr_v1_RemoveLayerResponse__Output>): grpc.ClientUnaryCall;
  RemoveLayer(argument: _ipdr_v1_RemoveLayerRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_RemoveLayerResponse__Output>): grpc.ClientUnaryCall;
  RemoveLayer(argument: _ipdr_v1_RemoveLayerRequest, callback: grpc.requestCallback<_ipdr_v1_RemoveLayerResponse__Output>): grpc.ClientUnaryCall;
  removeLayer(argument: _ipdr_v1_RemoveLayerRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_RemoveLayerResponse__Output>): grpc.ClientUnaryCall;
  removeLayer(argument: _ipdr_v1_RemoveLayerRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_ipdr_v1_RemoveLayerResponse__Output>): grpc.ClientUnaryCall;
  removeLayer(argument: _ipdr_v1_RemoveLayerRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_RemoveLayerResponse__Output>): grpc.ClientUnaryCall;
  removeLayer(argument: _ipdr_v1_RemoveLayerRequest, callback: grpc.requestCallback<_ipdr_v1_RemoveLayerResponse__Output>): grpc.ClientUnaryCall;
  
  Status(argument: _ipdr_v1_StatusRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_StatusResponse__Output>): grpc.ClientUnaryCall;
  Status(argument: _ipdr_v1_StatusRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_ipdr_v1_StatusResponse__Output>): grpc.ClientUnaryCall;
  Status(argument: _ipdr_v1_StatusRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_StatusResponse__Output>): grpc.ClientUnaryCall;
  Status(argument: _ipdr_v1_StatusRequest, callback: grpc.requestCallback<_ipdr_v1_StatusResponse__Output>): grpc.ClientUnaryCall;
  status(argument: _ipdr_v1_StatusRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_StatusResponse__Output>): grpc.ClientUnaryCall;
  status(argument: _ipdr_v1_StatusRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_ipdr_v1_StatusResponse__Output>): grpc.ClientUnaryCall;
  status(argument: _ipdr_v1_StatusRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_StatusResponse__Output>): grpc.ClientUnaryCall;
  status(argument: _ipdr_v1_StatusRequest, callback: grpc.requestCallback<_ipdr_v1_StatusResponse__Output>): grpc.ClientUnaryCall;
  
  WaitedFor(argument: _ipdr_v1_WaitedForRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_WaitedForResponse__Output>): grpc.ClientUnaryCall;
  WaitedFor(argument: _ipdr_v1_WaitedForRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_ipdr_v1_WaitedForResponse__Output>): grpc.ClientUnaryCall;
  WaitedFor(argument: _ipdr_v1_WaitedForRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_WaitedForResponse__Output>): grpc.ClientUnaryCall;
  WaitedFor(argument: _ipdr_v1_WaitedForRequest, callback: grpc.requestCallback<_ipdr_v1_WaitedForResponse__Output>): grpc.ClientUnaryCall;
  waitedFor(argument: _ipdr_v1_WaitedForRequest, metadata: grpc.Metadata, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_WaitedForResponse__Output>): grpc.ClientUnaryCall;
  waitedFor(argument: _ipdr_v1_WaitedForRequest, metadata: grpc.Metadata, callback: grpc.requestCallback<_ipdr_v1_WaitedForResponse__Output>): grpc.ClientUnaryCall;
  waitedFor(argument: _ipdr_v1_WaitedForRequest, options: grpc.CallOptions, callback: grpc.requestCallback<_ipdr_v1_WaitedForResponse__Output>): grpc.ClientUnaryCall;
  waitedFor(argument: _ipdr_v1_WaitedForRequest, callback: grpc.requestCallback<_ipdr_v1_WaitedForResponse__Output>): grpc.ClientUnaryCall;
  
}

export interface AgentHandlers extends grpc.UntypedServiceImplementation {
  CheckLayer: grpc.handleUnaryCall<_ipdr_v1_CheckLayerRequest__Output, _ipdr_v1_CheckLayerResponse>;
  
  CollectGarbage: grpc.handleUnaryCall<_ipdr_v1_CollectGarbageRequest__Output, _ipdr_v1_CollectGarbageResponse>;
  
  FinishRecording: grpc.handleUnaryCall<_ipdr_v1_FinishRecordingRequest__Output, _ipdr_v1_FinishRecordingResponse>;
  
  LayerIndex: grpc.handleServerStreamingCall<_ipdr_v1_LayerIndexRequest__Output, _ipdr_v1_LayerIndexPart>;
  
  ListImages: grpc.handleUnaryCall<_ipdr_v1_ListImagesRequest__Output, _ipdr_v1_ListImagesResponse>;
  
  ListLayers: grpc.handleUnaryCall<_ipdr_v1_ListLayersRequest__Output, _ipdr_v1_ListLayersResponse>;
  
  Pull: grpc.handleServerStreamingCall<_ipdr_v1_PullRequest__Output, _ipdr_v1_PullProgress>;
  
  Record: grpc.handleServerStreamingCall<_ipdr_v1_RecordRequest__Output, _ipdr_v1_RecordProgress>;
  
  RemoveLayer: grpc.handleUnaryCall<_ipdr_v1_RemoveLayerRequest__Output, _ipdr_v1_RemoveLayerResponse>;
  
  Status: grpc.handleUnaryCall<_ipdr_v1_StatusRequest__Output, _ipdr_v1_StatusResponse>;
  
  WaitedFor: grpc.handleUnaryCall<_ipdr_v1_WaitedForRequest__Output, _ipdr_v1_WaitedForResponse>;
  
}

export interface AgentDefinition extends grpc.ServiceDefinition {
  CheckLayer: MethodDefinition<_ipdr_v1_CheckLayerRequest, _ipdr_v1_CheckLayerResponse, _ipdr_v1_CheckLayerRequest__Output, _ipdr_v1_CheckLayerResponse__Output>
  CollectGarbage: MethodDefinition<_ipdr_v1_CollectGarbageRequest, _ipdr_v1_CollectGarbageResponse, _ipdr_v1_CollectGarbageRequest__Output, _ipdr_v1_CollectGarbageResponse__Output>
  FinishRecording: MethodDefinition<_ipdr_v1_FinishRecordingRequest, _ipdr_v1_FinishRecordingResponse, _ipdr_v1_FinishRecordingRequest__Output, _ipdr_v1_FinishRecordingResponse__Output>
  LayerIndex: MethodDefinition<_ipdr_v1_LayerIndexRequest, _ipdr_v1_LayerIndexPart, _ipdr_v1_LayerIndexRequest__Output, _ipdr_v1_LayerIndexPart__Output>
  ListImages: MethodDefinition<_ipdr_v1_ListImagesRequest, _ipdr_v1_ListImagesResponse, _ipdr_v1_ListImagesRequest__Output, _ipdr_v1_ListImagesResponse__Output>
  ListLayers: MethodDefinition<_ipdr_v1_ListLayersRequest, _ipdr_v1_ListLayersResponse, _ipdr_v1_ListLayersRequest__Output, _ipdr_v1_ListLayersResponse__Output>
  Pull: MethodDefinition<_ipdr_v1_PullRequest, _ipdr_v1_PullProgress, _ipdr_v1_PullRequest__Output, _ipdr_v1_PullProgress__Output>
  Record: MethodDefinition<_ipdr_v1_RecordRequest, _ipdr_v1_RecordProgress, _ipdr_v1_RecordRequest__Output, _ipdr_v1_RecordProgress__Output>
  RemoveLayer: MethodDefinition<_ipdr_v1_RemoveLayerRequest, _ipdr_v1_RemoveLayerResponse, _ipdr_v1_RemoveLayerRequest__Output, _ipdr_v1_RemoveLayerResponse__Output>
  Status: MethodDefinition<_ipdr_v1_StatusRequest, _ipdr_v1_StatusResponse, _ipdr_v1_StatusRequest__Output, _ipdr_v1_StatusResponse__Output>
  WaitedFor: MethodDefinition<_ipdr_v1_WaitedForRequest, _ipdr_v1_WaitedForResponse, _ipdr_v1_WaitedForRequest__Output, _ipdr_v1_WaitedForResponse__Output>
}
