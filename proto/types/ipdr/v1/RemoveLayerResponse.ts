// Original file: proto/ipdr/agent.proto

import type { Long } from '@grpc/proto-loader';

export interface RemoveLayerResponse {
  'freedBytes'?: (number | string | Long);
}

export interface RemoveLayerResponse__Output {
  'freedBytes': (string);
}
