// Original file: proto/ipdr/agent.proto


export interface CheckLayerRequest {
  'digest'?: (string);
}

export interface CheckLayerRequest__Output {
  'digest': (string);
}
