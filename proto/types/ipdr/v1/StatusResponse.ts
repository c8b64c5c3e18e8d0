// Original file: proto/ipdr/agent.proto

import type { Timestamp as _google_protobuf_Timestamp, Timestamp__Output as _google_protobuf_Timestamp__Output } from '../../google/protobuf/Timestamp.ts';
import type { LayerMount as _ipdr_v1_LayerMount, LayerMount__Output as _ipdr_v1_LayerMount__Output } from '../../ipdr/v1/LayerMount.ts';
import type { SourceBytes as _ipdr_v1_SourceBytes, SourceBytes__Output as _ipdr_v1_SourceBytes__Output } from '../../ipdr/v1/SourceBytes.ts';
import type { QueueDepth as _ipdr_v1_QueueDepth, QueueDepth__Output as _ipdr_v1_QueueDepth__Output } from '../../ipdr/v1/QueueDepth.ts';
import type { Long } from '@grpc/proto-loader';

export interface StatusResponse {
  'version'?: (string);
  'pid'?: (number);
  'startedAt'?: (_google_protobuf_Timestamp | null);
  'rung'?: (string);
  'rungReason'?: (string);
  'peerId'?: (string);
  'addresses'?: (string)[];
  'mounts'?: (_ipdr_v1_LayerMount)[];
  'missesTotal'?: (number | string | Long);
  'missP50Ms'?: (number | string);
  'missP99Ms'?: (number | string);
  'bytesBySource'?: (_ipdr_v1_SourceBytes)[];
  'servedFromCacheBytes'?: (number | string | Long);
  'queueDepths'?: (_ipdr_v1_QueueDepth)[];
  'verificationFailures'?: (number | string | Long);
  'storeBytes'?: (number | string | Long);
  'storeLimitBytes'?: (number | string | Long);
  'prefetchedBytes'?: (number | string | Long);
  'prefetchedUsedBytes'?: (number | string | Long);
  'supervisorPid'?: (number);
  'sentToClusterBytes'?: (number | string | Long);
}

export interface StatusResponse__Output {
  'version': (string);
  'pid': (number);
  'startedAt': (_google_protobuf_Timestamp__Output | null);
  'rung': (string);
  'rungReason': (string);
  'peerId': (string);
  'addresses': (string)[];
  'mounts': (_ipdr_v1_LayerMount__Output)[];
  'missesTotal': (string);
  'missP50Ms': (number);
  'missP99Ms': (number);
  'bytesBySource': (_ipdr_v1_SourceBytes__Output)[];
  'servedFromCacheBytes': (string);
  'queueDepths': (_ipdr_v1_QueueDepth__Output)[];
  'verificationFailures': (string);
  'storeBytes': (string);
  'storeLimitBytes': (string);
  'prefetchedBytes': (string);
  'prefetchedUsedBytes': (string);
  'supervisorPid': (number);
  'sentToClusterBytes': (string);
}
