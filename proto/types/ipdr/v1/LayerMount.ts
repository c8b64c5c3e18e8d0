// Original file: proto/ipdr/agent.proto

import type { MountKind as _ipdr_v1_MountKind, MountKind__Output as _ipdr_v1_MountKind__Output } from '../../ipdr/v1/MountKind.ts';

export interface LayerMount {
  'target'?: (string);
  'kind'?: (_ipdr_v1_MountKind);
  'layerDigest'?: (string);
  'layers'?: (number);
}

export interface LayerMount__Output {
  'target': (string);
  'kind': (_ipdr_v1_MountKind__Output);
  'layerDigest': (string);
  'layers': (number);
}
