// Original file: proto/ipdr/agent.proto

import type { Long } from '@grpc/proto-loader';

export interface Image {
  'reference'?: (string);
  'rootCid'?: (string);
  'manifestDigest'?: (string);
  'layers'?: (string)[];
  'size'?: (number | string | Long);
}

export interface Image__Output {
  'reference': (string);
  'rootCid': (string);
  'manifestDigest': (string);
  'layers': (string)[];
  'size': (string);
}
