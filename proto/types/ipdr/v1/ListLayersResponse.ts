// Original file: proto/ipdr/agent.proto

import type { Layer as _ipdr_v1_Layer, Layer__Output as _ipdr_v1_Layer__Output } from '../../ipdr/v1/Layer.ts';

export interface ListLayersResponse {
  'layers'?: (_ipdr_v1_Layer)[];
}

export interface ListLayersResponse__Output {
  'layers': (_ipdr_v1_Layer__Output)[];
}
