// Original file: proto/ipdr/agent.proto

import type { Long } from '@grpc/proto-loader';

export interface CollectGarbageRequest {
  'targetBytes'?: (number | string | Long);
}

export interface CollectGarbageRequest__Output {
  'targetBytes': (string);
}
