// Original file: proto/cri.proto


export interface PodSandbox {
  'id'?: (string);
}

export interface PodSandbox__Output {
  'id': (string);
}
