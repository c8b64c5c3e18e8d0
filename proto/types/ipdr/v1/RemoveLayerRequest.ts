// Original file: proto/ipdr/agent.proto


export interface RemoveLayerRequest {
  'digest'?: (string);
}

export interface RemoveLayerRequest__Output {
  'digest': (string);
}
