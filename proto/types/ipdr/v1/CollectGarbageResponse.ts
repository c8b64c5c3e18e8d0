// Original file: proto/ipdr/agent.proto

import type { Long } from '@grpc/proto-loader';

export interface CollectGarbageResponse {
  'freedBytes'?: (number | string | Long);
  'removedLayers'?: (number);
}

export interface CollectGarbageResponse__Output {
  'freedBytes': (string);
  'removedLayers': (number);
}
