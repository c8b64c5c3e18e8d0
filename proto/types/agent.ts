import type * as grpc from '@grpc/grpc-js';
import type { EnumTypeDefinition, MessageTypeDefinition } from '@grpc/proto-loader';

import type { Timestamp as _google_protobuf_Timestamp, Timestamp__Output as _google_protobuf_Timestamp__Output } from './google/protobuf/Timestamp.ts';
import type { AgentClient as _ipdr_v1_AgentClient, AgentDefinition as _ipdr_v1_AgentDefinition } from './ipdr/v1/Agent.ts';
import type { CheckLayerRequest as _ipdr_v1_CheckLayerRequest, CheckLayerRequest__Output as _ipdr_v1_CheckLayerRequest__Output } from './ipdr/v1/CheckLayerRequest.ts';
import type { CheckLayerResponse as _ipdr_v1_CheckLayerResponse, CheckLayerResponse__Output as _ipdr_v1_CheckLayerResponse__Output } from './ipdr/v1/CheckLayerResponse.ts';
import type { CollectGarbageRequest as _ipdr_v1_CollectGarbageRequest, CollectGarbageRequest__Output as _ipdr_v1_CollectGarbageRequest__Output } from './ipdr/v1/CollectGarbageRequest.ts';
import type { CollectGarbageResponse as _ipdr_v1_CollectGarbageResponse, CollectGarbageResponse__Output as _ipdr_v1_CollectGarbageResponse__Output } from './ipdr/v1/CollectGarbageResponse.ts';
import type { FinishRecordingRequest as _ipdr_v1_FinishRecordingRequest, FinishRecordingRequest__Output as _ipdr_v1_FinishRecordingRequest__Output } from './ipdr/v1/FinishRecordingRequest.ts';
import type { FinishRecordingResponse as _ipdr_v1_FinishRecordingResponse, FinishRecordingResponse__Output as _ipdr_v1_FinishRecordingResponse__Output } from './ipdr/v1/FinishRecordingResponse.ts';
import type { Image as _ipdr_v1_Image, Image__Output as _ipdr_v1_Image__Output } from './ipdr/v1/Image.ts';
import type { Layer as _ipdr_v1_Layer, Layer__Output as _ipdr_v1_Layer__Output } from './ipdr/v1/Layer.ts';
import type { LayerIndexPart as _ipdr_v1_LayerIndexPart, LayerIndexPart__Output as _ipdr_v1_LayerIndexPart__Output } from './ipdr/v1/LayerIndexPart.ts';
import type { LayerIndexRequest as _ipdr_v1_LayerIndexRequest, LayerIndexRequest__Output as _ipdr_v1_LayerIndexRequest__Output } from './ipdr/v1/LayerIndexRequest.ts';
import type { LayerMount as _ipdr_v1_LayerMount, LayerMount__Output as _ipdr_v1_LayerMount__Output } from './ipdr/v1/LayerMount.ts';
import type { ListImagesRequest as _ipdr_v1_ListImagesRequest, ListImagesRequest__Output as _ipdr_v1_ListImagesRequest__Output } from './ipdr/v1/ListImagesRequest.ts';
import type { ListImagesResponse as _ipdr_v1_ListImagesResponse, ListImagesResponse__Output as _ipdr_v1_ListImagesResponse__Output } from './ipdr/v1/ListImagesResponse.ts';
import type { ListLayersRequest as _ipdr_v1_ListLayersRequest, ListLayersRequest__Output as _ipdr_v1_ListLayersRequest__Output } from './ipdr/v1/ListLayersRequest.ts';
import type { ListLayersResponse as _ipdr_v1_ListLayersResponse, ListLayersResponse__Output as _ipdr_v1_ListLayersResponse__Output } from './ipdr/v1/ListLayersResponse.ts';
import type { PullProgress as _ipdr_v1_PullProgress, PullProgress__Output as _ipdr_v1_PullProgress__Output } from './ipdr/v1/PullProgress.ts';
import type { PullRequest as _ipdr_v1_PullRequest, PullRequest__Output as _ipdr_v1_PullRequest__Output } from './ipdr/v1/PullRequest.ts';
import type { QueueDepth as _ipdr_v1_QueueDepth, QueueDepth__Output as _ipdr_v1_QueueDepth__Output } from './ipdr/v1/QueueDepth.ts';
import type { RecordProgress as _ipdr_v1_RecordProgress, RecordProgress__Output as _ipdr_v1_RecordProgress__Output } from './ipdr/v1/RecordProgress.ts';
import type { RecordRequest as _ipdr_v1_RecordRequest, RecordRequest__Output as _ipdr_v1_RecordRequest__Output } from './ipdr/v1/RecordRequest.ts';
import type { RemoveLayerRequest as _ipdr_v1_RemoveLayerRequest, RemoveLayerRequest__Output as _ipdr_v1_RemoveLayerRequest__Output } from './ipdr/v1/RemoveLayerRequest.ts';
import type { RemoveLayerResponse as _ipdr_v1_RemoveLayerResponse, RemoveLayerResponse__Output as _ipdr_v1_RemoveLayerResponse__Output } from './ipdr/v1/RemoveLayerResponse.ts';
import type { SourceBytes as _ipdr_v1_SourceBytes, SourceBytes__Output as _ipdr_v1_SourceBytes__Output } from './ipdr/v1/SourceBytes.ts';
import type { StatusRequest as _ipdr_v1_StatusRequest, StatusRequest__Output as _ipdr_v1_StatusRequest__Output } from './ipdr/v1/StatusRequest.ts';
import type { StatusResponse as _ipdr_v1_StatusResponse, StatusResponse__Output as _ipdr_v1_StatusResponse__Output } from './ipdr/v1/StatusResponse.ts';
import type { WaitedForRequest as _ipdr_v1_WaitedForRequest, WaitedForRequest__Output as _ipdr_v1_WaitedForRequest__Output } from './ipdr/v1/WaitedForRequest.ts';
import type { WaitedForResponse as _ipdr_v1_WaitedForResponse, WaitedForResponse__Output as _ipdr_v1_WaitedForResponse__Output } from './ipdr/v1/WaitedForResponse.ts';
import type { WaitedRead as _ipdr_v1_WaitedRead, WaitedRead__Output as _ipdr_v1_WaitedRead__Output } from './ipdr/v1/WaitedRead.ts';

type SubtypeConstructor<Constructor extends new (...args: any) => any, Subtype> = {
  new(...args: ConstructorParameters<Constructor>): Subtype;
};

export interface ProtoGrpcType {
  google: {
    protobuf: {
      Timestamp: MessageTypeDefinition<_google_protobuf_Timestamp, _google_protobuf_Timestamp__Output>
    }
  }
  ipdr: {
    v1: {
      Agent: SubtypeConstructor<typeof grpc.Client, _ipdr_v1_AgentClient> & { service: _ipdr_v1_AgentDefinition }
      CheckLayerRequest: MessageTypeDefinition<_ipdr_v1_CheckLayerRequest, _ipdr_v1_CheckLayerRequest__Output>
      CheckLayerResponse: MessageTypeDefinition<_ipdr_v1_CheckLayerResponse, _ipdr_v1_CheckLayerResponse__Output>
      CollectGarbageRequest: MessageTypeDefinition<_ipdr_v1_CollectGarbageRequest, _ipdr_v1_CollectGarbageRequest__Output>
      CollectGarbageResponse: MessageTypeDefinition<_ipdr_v1_CollectGarbageResponse, _ipdr_v1_CollectGarbageResponse__Output>
      FinishRecordingRequest: MessageTypeDefinition<_ipdr_v1_FinishRecordingRequest, _ipdr_v1_FinishRecordingRequest__Output>
      FinishRecordingResponse: MessageTypeDefinition<_ipdr_v1_FinishRecordingResponse, _ipdr_v1_FinishRecordingResponse__Output>
      Image: MessageTypeDefinition<_ipdr_v1_Image, _ipdr_v1_Image__Output>
      Layer: MessageTypeDefinition<_ipdr_v1_Layer, _ipdr_v1_Layer__Output>
      LayerIndexPart: MessageTypeDefinition<_ipdr_v1_LayerIndexPart, _ipdr_v1_LayerIndexPart__Output>
      LayerIndexRequest: MessageTypeDefinition<_ipdr_v1_LayerIndexRequest, _ipdr_v1_LayerIndexRequest__Output>
      LayerMount: MessageTypeDefinition<_ipdr_v1_LayerMount, _ipdr_v1_LayerMount__Output>
      ListImagesRequest: MessageTypeDefinition<_ipdr_v1_ListImagesRequest, _ipdr_v1_ListImagesRequest__Output>
      ListImagesResponse: MessageTypeDefinition<_ipdr_v1_ListImagesResponse, _ipdr_v1_ListImagesResponse__Output>
      ListLayersRequest: MessageTypeDefinition<_ipdr_v1_ListLayersRequest, _ipdr_v1_ListLayersRequest__Output>
      ListLayersResponse: MessageTypeDefinition<_ipdr_v1_ListLayersResponse, _ipdr_v1_ListLayersResponse__Output>
      MountKind: EnumTypeDefinition
      PullProgress: MessageTypeDefinition<_ipdr_v1_PullProgress, _ipdr_v1_PullProgress__Output>
      PullRequest: MessageTypeDefinition<_ipdr_v1_PullRequest, _ipdr_v1_PullRequest__Output>
      QueueDepth: MessageTypeDefinition<_ipdr_v1_QueueDepth, _ipdr_v1_QueueDepth__Output>
      RecordProgress: MessageTypeDefinition<_ipdr_v1_RecordProgress, _ipdr_v1_RecordProgress__Output>
      RecordRequest: MessageTypeDefinition<_ipdr_v1_RecordRequest, _ipdr_v1_RecordRequest__Output>
      RemoveLayerRequest: MessageTypeDefinition<_ipdr_v1_RemoveLayerRequest, _ipdr_v1_RemoveLayerRequest__Output>
      RemoveLayerResponse: MessageTypeDefinition<_ipdr_v1_RemoveLayerResponse, _ipdr_v1_RemoveLayerResponse__Output>
      SourceBytes: MessageTypeDefinition<_ipdr_v1_SourceBytes, _ipdr_v1_SourceBytes__Output>
      StatusRequest: MessageTypeDefinition<_ipdr_v1_StatusRequest, _ipdr_v1_StatusRequest__Output>
      StatusResponse: MessageTypeDefinition<_ipdr_v1_StatusResponse, _ipdr_v1_StatusResponse__Output>
      WaitedForRequest: MessageTypeDefinition<_ipdr_v1_WaitedForRequest, _ipdr_v1_WaitedForRequest__Output>
      WaitedForResponse: MessageTypeDefinition<_ipdr_v1_WaitedForResponse, _ipdr_v1_WaitedForResponse__Output>
      WaitedRead: MessageTypeDefinition<_ipdr_v1_WaitedRead, _ipdr_v1_WaitedRead__Output>
    }
  }
}

